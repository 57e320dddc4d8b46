-- The scores of a run by subject and by level of the benchmark, below the score of the whole.
SELECT step, benchmark, decoding, kind, part, n, mean, stderr, truncation_rate AS truncated
FROM (SELECT run, step, benchmark, decoding, 'all' AS kind, '' AS part, n, mean, stderr, truncation_rate FROM scores
      UNION ALL
      SELECT run, step, benchmark, decoding, kind, part, n, mean, stderr, truncation_rate FROM score_parts)
WHERE run = $run ORDER BY step, benchmark, decoding, kind <> 'all', kind DESC, part, n;
