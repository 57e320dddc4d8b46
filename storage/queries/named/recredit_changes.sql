-- What each recredit changed, against the training's own verdicts and credit, step by step: one row for rewards and one
-- for advantages, and one for each change of status and where groups gained or lost their signal. `changed` of `total`
-- rollouts (groups for a signal; a rollout without a reward has no advantage), the largest |difference| of a reward or of
-- a token's advantage, and one example: a rollout_id, or a group_id.
WITH credits AS ( -- each step's credit in training and in every recredit, with the verdicts that it took
    SELECT DISTINCT l.step, l.purpose, l.label, j.purpose AS judged_purpose, j.label AS judged_label
    FROM links l
    JOIN stage_runs s USING (run, step, purpose, stage, key)
    LEFT JOIN links j ON j.run = l.run AND j.step = l.step AND j.stage || '/' || j.key = s.inputs['verdicts']
                     AND j.part = 'verdicts'
    WHERE l.run = $run AND l.part = 'advantages' AND l.purpose IN ('train', 'recredit') AND s.outcome <> 'failed'
    QUALIFY row_number() OVER (PARTITION BY l.step, l.purpose, l.label ORDER BY j.purpose, j.label) = 1
), judged AS (
    SELECT c.step, c.purpose, c.label, v.rollout_id, v.status, v.reward
    FROM credits c
    JOIN verdicts v ON v.run = $run AND v.step = c.step AND v.purpose = c.judged_purpose AND v.label = c.judged_label
), verdict_pairs AS (
    SELECT a.step, a.label, a.rollout_id, b.status AS before, a.status AS after, b.reward AS reward_before,
           a.reward AS reward_after
    FROM judged a JOIN judged b USING (step, rollout_id)
    WHERE a.purpose = 'recredit' AND b.purpose = 'train'
), credited AS (
    SELECT step, purpose, label, rollout_id, group_id, group_std, base_advantage, td_weight, td_positions, td_values,
           token_advantages, num_trained_tokens
    FROM advantages WHERE run = $run
), pairs AS (
    SELECT p.step, p.label, p.rollout_id, a.rollout_id IS NULL AS is_new, b.rollout_id IS NULL AS is_gone,
           r.loss_mask,
           CASE WHEN a.token_advantages IS NULL AND b.token_advantages IS NULL -- else every token is looked at
                THEN list_distinct(list_concat(a.td_positions, b.td_positions))
                ELSE range(greatest(len(a.token_advantages), len(b.token_advantages)))::INTEGER[] END AS positions,
           a.token_advantages IS NULL AND b.token_advantages IS NULL AS is_sparse,
           coalesce(a.num_trained_tokens, 2147483647) AS num_trained,
           a.base_advantage AS base_a, a.td_weight AS weight_a, a.td_positions AS positions_a, a.td_values AS td_a,
           a.token_advantages AS dense_a,
           b.base_advantage AS base_b, b.td_weight AS weight_b, b.td_positions AS positions_b, b.td_values AS td_b,
           b.token_advantages AS dense_b
    FROM verdict_pairs p
    LEFT JOIN credited a ON a.purpose = 'train' AND a.step = p.step AND a.rollout_id = p.rollout_id
    LEFT JOIN credited b ON b.purpose = 'recredit' AND b.step = p.step AND b.label = p.label
                        AND b.rollout_id = p.rollout_id
    LEFT JOIN (SELECT step, rollout_id, loss_mask FROM rollouts WHERE run = $run AND purpose = 'train') r
           ON r.step = p.step AND r.rollout_id = p.rollout_id
    WHERE NOT (a.rollout_id IS NULL AND b.rollout_id IS NULL)
), differences AS (
    SELECT step, label, rollout_id, is_new OR is_gone AS is_unpaired,
           CASE WHEN NOT (is_new OR is_gone) THEN greatest(
               coalesce(list_max(list_transform(
                   list_filter(positions, lambda t: coalesce(loss_mask[t + 1], true)),
                   lambda t: abs(
                       coalesce(dense_b[t + 1], base_b + weight_b * coalesce(td_b[list_position(positions_b, t)], 0))
                       - coalesce(dense_a[t + 1], base_a + weight_a * coalesce(td_a[list_position(positions_a, t)], 0)))
               )), 0),
               -- a trained token beside them, where all have the base alone
               CASE WHEN is_sparse
                     AND num_trained > len(list_filter(positions, lambda t: coalesce(loss_mask[t + 1], true)))
                    THEN abs(base_b - base_a) ELSE 0 END
           ) END AS difference
    FROM pairs
), signal AS (
    SELECT step, purpose, label, group_id, max(group_std) > 0 AS has_signal FROM credited GROUP BY ALL
), group_pairs AS (
    SELECT g.step, g.label, g.group_id, coalesce(a.has_signal, false) AS before, coalesce(b.has_signal, false) AS after
    FROM (SELECT DISTINCT c.step, c.label, s.group_id FROM credits c JOIN signal s USING (step)
          WHERE c.purpose = 'recredit' AND (s.purpose = 'train' OR s.label = c.label)) g
    LEFT JOIN signal a ON a.purpose = 'train' AND a.step = g.step AND a.group_id = g.group_id
    LEFT JOIN signal b ON b.purpose = 'recredit' AND b.step = g.step AND b.label = g.label AND b.group_id = g.group_id
)
SELECT step, label, change, before, after, changed, total, max_difference, example
FROM (
    SELECT 1 AS place, step, label, 'status' AS change, before, after, count(*) AS changed,
           any_value(n) AS total, NULL::DOUBLE AS max_difference, min(rollout_id) AS example
    FROM (SELECT *, count(*) OVER (PARTITION BY step, label) AS n FROM verdict_pairs) WHERE before <> after GROUP BY ALL
    UNION ALL
    SELECT 2, step, label, 'reward', NULL, NULL, count(*) FILTER (reward_before IS DISTINCT FROM reward_after), count(*),
           coalesce(max(abs(reward_after - reward_before)), 0),
           min(rollout_id) FILTER (reward_before IS DISTINCT FROM reward_after)
    FROM verdict_pairs GROUP BY ALL
    UNION ALL
    SELECT 3, step, label, 'advantage', NULL, NULL, count(*) FILTER (is_unpaired OR difference > 0), count(*),
           coalesce(max(difference), 0),
           coalesce(arg_min(rollout_id, row(-difference, rollout_id)) FILTER (difference > 0),
                    min(rollout_id) FILTER (is_unpaired))
    FROM differences GROUP BY ALL
    UNION ALL
    SELECT 4, step, label, 'signal', 'no signal', 'signal', count(*) FILTER (after AND NOT before), count(*), NULL,
           min(group_id) FILTER (after AND NOT before)
    FROM group_pairs GROUP BY ALL
    UNION ALL
    SELECT 5, step, label, 'signal', 'signal', 'no signal', count(*) FILTER (before AND NOT after), count(*), NULL,
           min(group_id) FILTER (before AND NOT after)
    FROM group_pairs GROUP BY ALL
)
WHERE changed > 0 OR change <> 'signal'
ORDER BY label, step, place, changed DESC, before, after;
