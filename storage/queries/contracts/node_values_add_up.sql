-- At every node, the completions of its children and those that end there are its completions, and so are their rewards:
-- sum of n_child * V_child + rewards of those that end = n * V. Where all go on, td over its completions sums to 0.
-- Why: V is a mean over D(s); where the parts do not make the whole, some completion is counted twice or nowhere.
-- Do: look at the tree (tasks/core/prefix_tree.py).
SELECT group_id, node, any_value(n) FILTER (is_node) AS num_completions, any_value(total) FILTER (is_node) AS rewards,
       coalesce(sum(n) FILTER (NOT is_node), 0) AS num_of_parts, coalesce(sum(total) FILTER (NOT is_node), 0) AS parts
FROM (
    SELECT group_id, node, true AS is_node, num_completions AS n, num_completions * value AS total FROM prefix_nodes
    UNION ALL
    SELECT group_id, parent, false, num_completions, num_completions * value FROM prefix_nodes WHERE parent IS NOT NULL
    UNION ALL
    SELECT group_id, leaf_node, false, 1, reward FROM advantages
)
GROUP BY group_id, node
HAVING num_completions IS DISTINCT FROM num_of_parts OR abs(rewards - parts) > 1e-6 * greatest(1, abs(rewards))
