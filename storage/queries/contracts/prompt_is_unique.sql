-- No prompt_id appears twice, and none is both a prompt and a dropped row.
-- Why: an epoch draws each prompt once; a doubled one would be trained on twice and counted once.
-- Do: look for repeated row numbers in the dataset.
SELECT prompt_id, count(*) AS num_rows
FROM (SELECT prompt_id FROM prompts UNION ALL SELECT prompt_id FROM dropped_prompts)
GROUP BY prompt_id HAVING count(*) > 1
