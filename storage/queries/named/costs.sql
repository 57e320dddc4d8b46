-- What each stage of a run has cost: executions, seconds, tokens and bytes of what was computed.
SELECT stage, count(*) FILTER (outcome = 'ran') AS ran, count(*) FILTER (outcome = 'cached') AS cached,
       count(*) FILTER (outcome = 'failed') AS failed, sum(seconds) FILTER (outcome = 'ran') AS seconds,
       sum(tokens) FILTER (outcome = 'ran') AS tokens, sum(bytes) FILTER (outcome = 'ran') / 1e6 AS megabytes
FROM stage_runs WHERE run = $run GROUP BY stage ORDER BY seconds DESC NULLS LAST;
