-- The commit log as tables. `$log` is the log file; torn lines read as NULL and are dropped.
CREATE TABLE events AS
SELECT row_number() OVER () AS line, *
FROM read_json($log, format = 'newline_delimited', ignore_errors = true, columns = {
    event: 'VARCHAR', run: 'VARCHAR', attempt: 'VARCHAR', "at": 'TIMESTAMP', host: 'VARCHAR', pid: 'BIGINT',
    error: 'VARCHAR', state: 'VARCHAR', experiment: 'JSON', code: 'JSON', step: 'INTEGER', purpose: 'VARCHAR',
    stage: 'VARCHAR', stage_version: 'INTEGER', label: 'VARCHAR', key: 'VARCHAR', key_parts: 'JSON',
    inputs: 'MAP(VARCHAR, VARCHAR)', outputs: 'MAP(VARCHAR, VARCHAR)', files: 'MAP(VARCHAR, VARCHAR)',
    outcome: 'VARCHAR', seconds: 'DOUBLE', tokens: 'BIGINT', bytes: 'BIGINT', schema_version: 'INTEGER',
    base: 'VARCHAR', takes: 'JSON', flow_run: 'VARCHAR'})
WHERE event IS NOT NULL;

-- One row per execution of a stage, oldest first.
CREATE VIEW stage_runs AS
SELECT line, run, attempt, step, purpose, stage, label, stage_version, outcome, seconds, tokens, bytes, "at" AS started_at,
       key, key_parts, inputs, outputs, host, pid, error
FROM events WHERE event = 'stage';

-- One row per command that worked on a run: started, then completed, failed or interrupted (or nothing: killed).
CREATE VIEW run_events AS
SELECT line, run, attempt, state, "at", experiment, takes, code, host, pid, error
FROM events WHERE event = 'run';

-- One row per run: its current attempt is the configuration it was last worked on with. Forgotten runs are left out.
CREATE VIEW runs AS
SELECT run, arg_max(attempt, line) AS attempt,
       arg_max(state, line) FILTER (event = 'run') AS state,
       min("at") AS started_at, max("at") AS last_event_at,
       arg_max(stage || ' ' || step, line) FILTER (event = 'stage') AS last_stage,
       count(*) FILTER (event = 'stage' AND outcome = 'ran') AS num_ran,
       count(*) FILTER (event = 'stage' AND outcome = 'cached') AS num_cached
FROM events WHERE run IS NOT NULL GROUP BY run
HAVING arg_max(state, line) FILTER (event = 'run') IS DISTINCT FROM 'forgotten';

-- Which committed file serves which run, step and purpose, in the current attempt: of each place in training the newest
-- one; of an evaluation every one, since other samples or limits add scores and hide none. Prompts stand where they first
-- served: they are the same rows at every step.
CREATE TABLE links AS
SELECT run, step, purpose, stage, label, key, part, file, coalesce(schema_version, 1) AS schema_version
FROM (
    SELECT e.*,
           row_number() OVER (
               PARTITION BY e.run, e.step, e.purpose, e.stage, e.label, CASE e.purpose WHEN 'eval' THEN e.key END
               ORDER BY e.line DESC) AS newest,
           row_number() OVER (PARTITION BY e.run, e.purpose, e.stage, e.key ORDER BY e.step, e.line DESC) AS first_use
    FROM events e JOIN runs r ON e.run = r.run AND e.attempt = r.attempt
    WHERE e.event = 'stage' AND e.outcome IN ('ran', 'cached')
), LATERAL (SELECT unnest(map_keys(files)) AS part, unnest(map_values(files)) AS file)
WHERE newest = 1 AND (stage <> 'prompts' OR first_use = 1);
