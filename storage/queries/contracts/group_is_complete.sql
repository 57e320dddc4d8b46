-- Every group holds num_samples completions of one prompt, every prompt has one group, and no rollout_id appears twice.
-- Why: a group is compared with its own mean; a missing, foreign or doubled completion shifts it for all others.
-- Do: look at the sampling engine: it must return num_samples completions of each prompt, in order.
WITH groups AS (
    SELECT group_id, count(*) AS num_completions, count(DISTINCT rollout_id) AS num_ids, min(prompt_id) AS prompt_id,
           max(prompt_id) AS other
    FROM rollouts GROUP BY group_id
)
SELECT group_id, num_completions, num_ids, prompt_id FROM groups
WHERE num_completions <> $num_samples OR num_ids <> num_completions OR prompt_id <> other
   OR prompt_id IN (SELECT prompt_id FROM groups GROUP BY prompt_id HAVING count(*) > 1)
