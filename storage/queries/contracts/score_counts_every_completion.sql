-- A score has n * k completions and counts those without a reward; its error and shares are in range.
-- Why: a score over fewer completions than it claims is another score.
-- Do: look at tasks/evaluation.py and at the rollouts of the benchmark.
SELECT benchmark, decoding, n, k, num_unassigned, mean, stderr, pass_at_k, truncation_rate FROM scores
WHERE n * k <> (SELECT count(*) FROM rollouts)
   OR num_unassigned <> (SELECT count(*) FROM verdicts WHERE reward IS NULL)
   OR NOT isfinite(mean) OR stderr < 0 OR NOT isfinite(stderr)
   OR NOT truncation_rate BETWEEN 0 AND 1 OR NOT pass_at_k BETWEEN 0 AND 1
