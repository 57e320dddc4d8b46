-- How many prompts of each epoch had which outcome, and whether any was drawn, judged, credited or trained on twice.
SELECT epoch, outcome, count(*) AS prompts, max(num_groups) AS most_groups, max(num_updates) AS most_updates,
       sum(num_completions - num_judged) AS not_judged, sum(num_judged - num_unassigned - num_credited) AS not_credited
FROM prompt_ledger WHERE run = $run GROUP BY ALL ORDER BY ALL;
