-- Along a completion tempo's td adds up to V(its leaf) - V(root), within 1e-5 (td is stored as float32), unless credit.td_clip
-- or credit.min_support cut it. tempo_loo's td has other baselines and adds up to nothing in particular.
-- Why: td is a difference of values; a sum that does not telescope has lost or invented credit on the way.
-- Do: look at the tree (tasks/core/prefix_tree.py). V(leaf) is the reward unless an equal or longer completion shares it.
SELECT rollout_id, a.group_id, coalesce(list_sum(td_values), 0) AS sum_of_td, leaf.value - root.value AS expected
FROM advantages a
LEFT JOIN prefix_nodes leaf ON leaf.group_id = a.group_id AND leaf.node = a.leaf_node
LEFT JOIN prefix_nodes root ON root.group_id = a.group_id AND root.node = 0
WHERE estimator = 'tempo' AND $td_clip = 0 AND $min_support <= 1
  AND td_weight <> 0 -- groups without signal have no td
  AND (leaf.node IS NULL OR root.node IS NULL
       OR abs(coalesce(list_sum(td_values), 0) - (leaf.value - root.value)) > 1e-5 * greatest(1, abs(leaf.value)))
