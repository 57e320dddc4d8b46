-- The updates of a step take every credited group exactly once and whole.
-- Why: a group that is taken twice weighs double, one that is left out was sampled for nothing.
-- Do: look at the mini-batches of tasks/training.py.
SELECT group_id, sum(num_credited) AS num_credited, sum(num_taken) AS num_taken, sum(num_updates) AS num_updates
FROM (SELECT group_id, 1 AS num_credited, 0 AS num_taken, 0 AS num_updates FROM advantages
      UNION ALL SELECT group_id, 0, num_completions, 1 FROM update_groups)
GROUP BY group_id HAVING sum(num_updates) <> 1 OR sum(num_credited) <> sum(num_taken)
