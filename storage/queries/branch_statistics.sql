-- One row per run, step, purpose ('train', 'recredit'), label (a recredit's settings) and estimator: how many branch tokens
-- a completion has (tokens at which fewer completions of its group go on), how many tokens get credit of their own (trained
-- on, and td_weight * td is not 0), how many tokens a group shares before its first branch token (groups that never diverge
-- left out), which share of |advantage| td moves, and how many groups give no signal.
--
-- td_share = sum |td_weight * td| / (sum |td_weight * td| + sum |base_advantage|) over the trained tokens, in [0, 1]; the
-- advantage of a dense estimator has no td part, and counts as a whole below. Columns that an older version of the credit
-- stage did not store are NULL.
CREATE VIEW branch_statistics AS
WITH parts AS (
    SELECT a.run, a.step, a.purpose, a.label, a.estimator, a.group_id, a.group_std, a.num_branch_tokens, a.divergence,
           CASE WHEN a.td_weight <> 0
                THEN len(list_filter(a.td_positions, lambda t: coalesce(r.loss_mask[t + 1], true))) ELSE 0 END AS num_td,
           CASE WHEN a.token_advantages IS NULL
                THEN abs(a.base_advantage) * a.num_trained_tokens
                ELSE list_sum(list_transform(a.token_advantages, lambda advantage: abs(advantage::DOUBLE))) END AS base,
           abs(a.td_weight) * coalesce(list_sum(list_transform(
               list_zip(a.td_positions, a.td_values),
               lambda entry: CASE WHEN coalesce(r.loss_mask[entry[1] + 1], true) THEN abs(entry[2]::DOUBLE) ELSE 0 END
           )), 0) AS td
    FROM advantages a
    LEFT JOIN (SELECT run, step, rollout_id, loss_mask FROM rollouts WHERE purpose = 'train') r
      USING (run, step, rollout_id)
), groups AS (
    SELECT run, step, purpose, label, estimator, group_id,
           any_value(divergence) AS divergence, max(group_std) AS group_std,
           sum(num_branch_tokens) AS num_branch_tokens, count(*) AS num_completions, sum(num_td) AS num_td,
           sum(base) AS base, sum(td) AS td
    FROM parts GROUP BY ALL
)
SELECT run, step, purpose, label, estimator,
       sum(num_branch_tokens) / sum(num_completions) AS branch_tokens,
       sum(num_td) / sum(num_completions) AS td_tokens,
       avg(divergence) AS divergence,
       CASE WHEN sum(td) + sum(base) > 0 THEN sum(td) / (sum(td) + sum(base)) WHEN sum(base) = 0 THEN 0 END AS td_share,
       count(*) AS num_groups, count(*) FILTER (group_std = 0) AS num_groups_without_signal
FROM groups GROUP BY run, step, purpose, label, estimator;
