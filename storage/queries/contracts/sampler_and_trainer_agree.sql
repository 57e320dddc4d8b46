-- At the first update, 90 % of the importance ratios are within 1 +- contracts.max_mismatch.
-- Why: no weight has changed yet: ratios away from 1 say that sampler and trainer compute different probabilities, and
-- the clipped objective then works against its own engine instead of its own past.
-- Do: look at temperature, precision and tokenizer of both, or accept it with --set contracts.max_mismatch=SHARE
SELECT "update", ratio_p05, ratio_p50, ratio_p95 FROM updates
WHERE "update" = 0 AND (ratio_p05 < 1 - $max_mismatch OR ratio_p95 > 1 + $max_mismatch)
