-- At the first update, 90 % of the trained tokens have a p_trainer / p_sampler within 1 +- contracts.max_mismatch, the
-- trainer's nucleus renormalised as the sampler's was.
-- Why: no weight has changed yet: ratios away from 1 say that the two engines compute different probabilities. The
-- clipped objective then works against its own engine instead of its own past, and importance weights meet their cap.
-- Do: see whether the engine of sampler.engine holds the policy's weights (tempo sql "FROM weight_syncs": the check of
-- every weight sync), and look at temperature, precision and tokenizer of both. What is rounding alone (sampler.dtype
-- bf16) is corrected by --set train.importance_sampling=token, and accepted with --set contracts.max_mismatch=SHARE
SELECT "update", mismatch_p05, mismatch_p50, mismatch_p95, mismatch_kl FROM updates
WHERE "update" = 0 AND (mismatch_p05 < ln(greatest(1 - $max_mismatch, 1e-300)) OR mismatch_p95 > ln(1 + $max_mismatch))
