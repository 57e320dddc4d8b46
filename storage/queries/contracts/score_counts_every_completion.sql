-- A score has n * k completions and counts those without a reward; its parts, passes and statuses agree with it.
-- Why: a score over fewer completions than it claims is another score.
-- Do: look at tasks/evaluation.py and at the rollouts of the benchmark.
WITH passes AS (
    SELECT attempts, pass_at_k, pass_at_k - lag(pass_at_k) OVER (ORDER BY attempts) AS gain FROM score_passes)
SELECT benchmark, decoding, n, k, num_unassigned, mean, stderr, macro_mean, pass_at_k, maj_at_k, truncation_rate,
       (SELECT list(p ORDER BY attempts) FROM passes p) AS passes,
       (SELECT list(p) FROM (SELECT kind, sum(n) AS n FROM score_parts GROUP BY kind) p) AS parts,
       (SELECT list(p) FROM (SELECT status, num_completions FROM score_statuses) p) AS statuses
FROM scores
WHERE n * k <> (SELECT count(*) FROM rollouts)
   OR num_unassigned <> (SELECT count(*) FROM verdicts WHERE reward IS NULL)
   OR NOT isfinite(mean) OR stderr < 0 OR NOT isfinite(stderr)
   OR NOT truncation_rate BETWEEN 0 AND 1 OR NOT pass_at_k BETWEEN 0 AND 1 OR NOT maj_at_k BETWEEN 0 AND 1
   -- every prompt is in one part of each kind, and the macro mean is that of the subjects
   OR EXISTS (SELECT kind FROM score_parts GROUP BY kind HAVING sum(score_parts.n) <> scores.n)
   OR abs(macro_mean - (SELECT avg(p.mean) FROM score_parts p WHERE kind = 'subject')) > 1e-9
   -- pass@k starts at the mean, never falls, and ends at the score's
   OR abs(mean - (SELECT p.pass_at_k FROM passes p WHERE attempts = 1)) > 1e-9
   OR pass_at_k IS DISTINCT FROM (SELECT p.pass_at_k FROM passes p WHERE attempts = k)
   OR k <> (SELECT max(attempts) FROM passes)
   OR EXISTS (SELECT 1 FROM passes WHERE gain < -1e-9)
   -- every completion has one status
   OR n * k IS DISTINCT FROM (SELECT sum(num_completions) FROM score_statuses)
   OR num_unassigned IS DISTINCT FROM (SELECT sum(num_completions) FROM score_statuses
                                       WHERE status IN ('timeout', 'out_of_memory', 'crashed'))
