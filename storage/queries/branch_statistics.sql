-- One row per run and step: how many branch tokens a completion has (tokens at which its group parts), at how many of
-- them the value moves (td is not 0: they get credit of their own), and how many groups give no signal.
CREATE VIEW branch_statistics AS
WITH trees AS (
    SELECT n.run, n.step,
           coalesce(sum(n.num_completions) FILTER (n.num_completions < p.num_completions), 0)
           / sum(n.num_completions) FILTER (n.parent IS NULL) AS branch_tokens
    FROM (FROM prefix_nodes WHERE purpose = 'train') n
    LEFT JOIN (FROM prefix_nodes WHERE purpose = 'train') p
      ON p.run = n.run AND p.step = n.step AND p.group_id = n.group_id AND p.node = n.parent
    GROUP BY n.run, n.step
), groups AS (
    SELECT run, step, count(*) AS num_groups, count(*) FILTER (group_std = 0) AS num_groups_without_signal
    FROM (SELECT DISTINCT run, step, group_id, group_std FROM advantages WHERE purpose = 'train')
    GROUP BY run, step
), credited AS (
    SELECT run, step, avg(len(td_positions)) AS td_tokens FROM advantages WHERE purpose = 'train' GROUP BY run, step
)
SELECT run, step, branch_tokens, td_tokens, num_groups, num_groups_without_signal
FROM trees JOIN groups USING (run, step) JOIN credited USING (run, step);
