-- td has a position and a finite value each, in increasing order inside the completion; dense advantages are one a token.
-- Why: an advantage at the wrong token, or at none, rewards what did not earn it.
-- Do: look at the estimator (tasks/core/advantage.py).
SELECT rollout_id, len(token_ids) AS num_tokens, td_positions, td_values, len(token_advantages) AS num_advantages
FROM advantages JOIN rollouts USING (rollout_id)
WHERE len(td_positions) <> len(td_values)
   OR td_positions[1] < 0 OR td_positions[-1] >= len(token_ids)
   OR (len(td_positions) > 1 AND td_positions <> list_sort(list_distinct(td_positions)))
   OR NOT isfinite(base_advantage) OR NOT isfinite(td_weight) OR NOT isfinite(list_sum(td_values))
   OR len(token_advantages) <> len(token_ids) OR NOT isfinite(list_sum(token_advantages))
