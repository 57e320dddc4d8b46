-- In a group whose rewards are all equal every advantage is 0, but for ppo (its critic may err) and reinforce_pp (the mean
-- over the step's tokens is taken off every token).
-- Why: such a group says nothing about its tokens; any advantage would be noise divided by epsilon.
-- Do: look at the estimator (tasks/core/estimators.py).
SELECT rollout_id, group_id, base_advantage, td_weight, td_values FROM advantages
WHERE group_std = 0 AND estimator NOT IN ('ppo', 'reinforce_pp')
  AND (base_advantage <> 0 OR (td_weight <> 0 AND len(td_positions) > 0)
       OR list_min(token_advantages) <> 0 OR list_max(token_advantages) <> 0)
