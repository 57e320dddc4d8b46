-- td has a position and a finite value each, in increasing order inside the completion; dense advantages and returns are one
-- a token, and the advantages of tokens that are not trained on are 0.
-- Why: an advantage at the wrong token, or at none, rewards what did not earn it.
-- Do: look at the estimator (tasks/core/estimators.py).
SELECT rollout_id, len(token_ids) AS num_tokens, td_positions, td_values, len(token_advantages) AS num_advantages,
       len(token_returns) AS num_returns
FROM advantages JOIN rollouts USING (rollout_id)
WHERE len(td_positions) <> len(td_values)
   OR td_positions[1] < 0 OR td_positions[-1] >= len(token_ids)
   OR (len(td_positions) > 1 AND td_positions <> list_sort(list_distinct(td_positions)))
   OR NOT isfinite(base_advantage) OR NOT isfinite(td_weight) OR NOT isfinite(list_sum(td_values))
   OR len(token_advantages) <> len(token_ids) OR NOT isfinite(list_sum(token_advantages))
   OR len(token_returns) <> len(token_ids) OR NOT isfinite(list_sum(token_returns))
   OR num_trained_tokens <> coalesce(len(list_filter(loss_mask, lambda is_trained: is_trained)), len(token_ids))
   OR list_sum(list_transform(list_zip(token_advantages, loss_mask),
                              lambda token: CASE WHEN coalesce(token[2], true) THEN 0 ELSE abs(token[1]) END)) > 0
