-- One row per token of every credited completion and estimator: its log-probability, td and advantage, decoded. `purpose`
-- is 'train', or 'recredit' for the credit that was added later.
CREATE VIEW token_credit AS
WITH tokens AS (
    SELECT
        run, step, group_id, rollout_id, prompt_id,
        unnest(range(len(token_ids))) AS position,
        unnest(token_ids) AS token_id,
        unnest(sampler_logprobs) AS sampler_logprob
    FROM rollouts
    WHERE purpose = 'train'
)
SELECT
    t.run, t.step, a.purpose, t.group_id, t.rollout_id, t.prompt_id, t.position::INTEGER AS position, t.token_id,
    v.text AS token, t.sampler_logprob, a.estimator, a.estimator_version, a.reward, a.base_advantage,
    coalesce(a.td_values[list_position(a.td_positions, t.position::INTEGER)], 0)::DOUBLE AS td,
    coalesce(a.token_advantages[t.position + 1],
             a.base_advantage
             + a.td_weight * coalesce(a.td_values[list_position(a.td_positions, t.position::INTEGER)], 0)) AS advantage
FROM tokens t
JOIN advantages a USING (run, step, rollout_id)
LEFT JOIN vocabulary v ON v.run = t.run AND v.token_id = t.token_id;
