-- One row per token of every credited completion and estimator: its log-probability, td and advantage, decoded. `purpose`
-- is 'train', or 'recredit' for the credit that was added later; `label` tells several recredits
-- with one estimator apart. A token that is not trained on (is_trained: loss_mask)
-- has the advantage 0, whatever its completion's base and its own td are. token_return is the critic's target (ppo).
CREATE VIEW token_credit AS
WITH tokens AS (
    SELECT
        run, step, group_id, rollout_id, prompt_id,
        unnest(range(len(token_ids))) AS position,
        unnest(token_ids) AS token_id,
        unnest(sampler_logprobs) AS sampler_logprob,
        loss_mask
    FROM rollouts
    WHERE purpose = 'train'
), credited AS (
    SELECT
        t.*, a.purpose, a.label, a.estimator, a.estimator_version, a.reward, a.base_advantage, a.td_weight,
        coalesce(a.td_values[list_position(a.td_positions, t.position::INTEGER)], 0)::DOUBLE AS td,
        a.token_advantages[t.position + 1] AS dense_advantage,
        a.token_returns[t.position + 1] AS token_return,
        coalesce(t.loss_mask[t.position + 1], true) AS is_trained
    FROM tokens t
    JOIN advantages a USING (run, step, rollout_id)
)
SELECT
    c.run, c.step, c.purpose, c.label, c.group_id, c.rollout_id, c.prompt_id, c.position::INTEGER AS position, c.token_id,
    v.text AS token, c.sampler_logprob, c.estimator, c.estimator_version, c.reward, c.base_advantage, c.td,
    CASE WHEN is_trained THEN coalesce(c.dense_advantage, c.base_advantage + c.td_weight * c.td) ELSE 0 END AS advantage,
    c.token_return, c.is_trained
FROM credited c
LEFT JOIN vocabulary v ON v.run = c.run AND v.token_id = c.token_id;
