-- Where a run's newest scores come from, stage by stage: score, policy, updates, advantages, verdicts, rollouts, prompts,
-- down to the dataset's revision and the first policy; each with the run and the time that computed it, the code's git
-- commit (and whether files differed from it), and the versions of the packages.
WITH RECURSIVE makers AS ( -- who computed each artifact: this run, or another one that shares it
    SELECT stage || '/' || key AS artifact, * FROM stage_runs WHERE outcome = 'ran'
    QUALIFY row_number() OVER (PARTITION BY stage, key ORDER BY line DESC) = 1
), lineage AS (
    SELECT DISTINCT stage || '/' || key AS artifact FROM links
    WHERE run = $run AND stage = 'evaluation'
      AND step = (SELECT max(step) FROM links WHERE run = $run AND stage = 'evaluation')
    UNION -- each artifact once, however many ways lead to it
    SELECT unnest(map_values(m.inputs)) FROM lineage JOIN makers m USING (artifact)
)
SELECT m.step, m.purpose, m.stage, m.label,
       CASE m.stage
            WHEN 'demonstrations' THEN m.key_parts->>'$.config.source.dataset'
            WHEN 'evaluation' THEN printf('%.4f over %d prompts x %d', s.mean, s.n, s.k)
            WHEN 'prompts' THEN m.key_parts->>'$.config.source.dataset' || ' ' || (m.key_parts->>'$.config.source.split')
                                || ' at revision ' || (m.key_parts->>'$.config.source.revision')
            WHEN 'verification' THEN m.key_parts->>'$.config.verifier' || ' version '
                                     || (m.key_parts->>'$.config.verifier_version')
            WHEN 'generation' THEN m.key_parts->>'$.config.num_samples' || ' a prompt, ' || (m.key_parts->>'$.config.decoding')
            WHEN 'signals' THEN m.key_parts->>'$.config.wanted'
            WHEN 'critic' THEN m.key_parts->>'$.config.backbone' || ' backbone'
            WHEN 'credit' THEN m.key_parts->>'$.config.estimator'
            WHEN 'training' THEN m.key_parts->>'$.config.config.updates_per_step' || ' updates, learning rate '
                                 || (m.key_parts->>'$.config.config.learning_rate')
            WHEN 'warm_start' THEN m.key_parts->>'$.config.config.updates' || ' updates'
            WHEN 'policy' THEN m.key_parts->>'$.config.source.digest'
       END AS what,
       m.key[:12] AS key, m.stage_version AS version, m.run AS made_by, m.started_at AS made_at,
       c.code->>'commit' AS "commit", (c.code->>'is_dirty')::BOOLEAN AS is_dirty, c.code->>'packages' AS packages
FROM lineage JOIN makers m USING (artifact)
ASOF LEFT JOIN (SELECT host, pid, line, code FROM events WHERE code IS NOT NULL) c
     ON c.host = m.host AND c.pid = m.pid AND c.line < m.line
LEFT JOIN scores s ON m.stage = 'evaluation' AND s.run = $run AND s.step = m.step
     AND s.benchmark || ' ' || s.decoding = m.label AND s.prompt_hash = m.key_parts->>'$.inputs.prompts'
ORDER BY m.step DESC, m.line DESC;
