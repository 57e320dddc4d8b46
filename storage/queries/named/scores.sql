-- Every score of a run with all that makes it comparable: scorer, prompts, revision, n, k and how it was sampled.
SELECT step, benchmark, decoding, scorer, left(prompt_hash, 12) AS prompts, left(dataset_revision, 22) AS revision, n, k,
       temperature, top_p, max_tokens, sampler, mean, stderr, macro_mean AS macro, pass_at_k, maj_at_k,
       truncation_rate AS truncated, num_unassigned AS unassigned
FROM scores WHERE run = $run ORDER BY step, benchmark, decoding, n, k, temperature;
