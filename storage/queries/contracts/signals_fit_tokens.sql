-- Every signal that was asked for has one finite number for each token; log-probabilities are at most 0 (1e-6 more is
-- rounding), entropies at least 0, kept masses above 0 and at most 1.
-- Why: a signal beside the wrong token, or none, moves that token's advantage or loss for no reason.
-- Do: look at the policy, reference or critic that gave it (tasks/signals.py): has its training diverged?
SELECT rollout_id, len(token_ids) AS num_tokens, len(trainer_logprobs) AS num_trainer_logprobs,
       len(entropies) AS num_entropies, len(kept_mass) AS num_kept_mass,
       len(reference_logprobs) AS num_reference_logprobs, len("values") AS num_values
FROM signals JOIN rollouts USING (rollout_id)
WHERE len(trainer_logprobs) <> len(token_ids) OR len(entropies) <> len(token_ids)
   OR len(kept_mass) <> len(token_ids) OR len(reference_logprobs) <> len(token_ids) OR len("values") <> len(token_ids)
   OR NOT isfinite(list_sum(trainer_logprobs)) OR NOT isfinite(list_sum(reference_logprobs))
   OR NOT isfinite(list_sum(entropies)) OR NOT isfinite(list_sum("values"))
   OR NOT isfinite(list_sum(kept_mass)) OR list_max(kept_mass) > 1 + 1e-6 OR list_min(kept_mass) <= 0
   OR list_max(trainer_logprobs) > 1e-6 OR list_max(reference_logprobs) > 1e-6 OR list_min(entropies) < -1e-4
