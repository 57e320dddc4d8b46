-- One row per run, epoch and prompt: in which step it was drawn, and what became of it. Every prompt stands here once for
-- every epoch that has begun, so that nothing is repeated or lost unseen: num_groups = 1 means generated exactly once,
-- num_judged = num_completions judged, num_updates = 1 trained on exactly once.
--
-- outcome: trained; no signal (all rewards equal: trained with advantages of 0); null verdicts (no completion had a
-- reward); too long or empty (never became a prompt); in progress; waiting (not drawn yet in this epoch).
CREATE VIEW prompt_ledger AS
WITH groups AS (
    SELECT run, step, epoch, prompt_id, group_id, count(*) AS num_completions
    FROM rollouts WHERE purpose = 'train' AND epoch IS NOT NULL GROUP BY ALL
), judged AS (
    SELECT run, step, group_id, count(*) AS num_judged, count(*) FILTER (reward IS NULL) AS num_unassigned
    FROM verdicts WHERE purpose = 'train' GROUP BY ALL
), credited AS (
    SELECT run, step, group_id, count(*) AS num_credited, max(group_std) AS group_std
    FROM advantages WHERE purpose = 'train' GROUP BY ALL
), taken AS (
    SELECT run, step, group_id, count(*) AS num_updates FROM update_groups GROUP BY ALL
), drawn AS (
    SELECT run, epoch, prompt_id, min(step) AS step, count(*) AS num_groups, sum(num_completions) AS num_completions,
           coalesce(sum(num_judged), 0) AS num_judged, coalesce(sum(num_unassigned), 0) AS num_unassigned,
           coalesce(sum(num_credited), 0) AS num_credited, coalesce(sum(num_updates), 0) AS num_updates,
           max(group_std) AS group_std
    FROM groups
    LEFT JOIN judged USING (run, step, group_id)
    LEFT JOIN credited USING (run, step, group_id)
    LEFT JOIN taken USING (run, step, group_id)
    GROUP BY run, epoch, prompt_id
), epochs AS (
    SELECT run, unnest(range(max(epoch) + 1)) AS epoch FROM drawn GROUP BY run
)
SELECT run, epoch::INTEGER AS epoch, prompt_id, d.step,
       coalesce(d.num_groups, 0) AS num_groups, coalesce(d.num_completions, 0)::BIGINT AS num_completions,
       coalesce(d.num_judged, 0)::BIGINT AS num_judged, coalesce(d.num_unassigned, 0)::BIGINT AS num_unassigned,
       coalesce(d.num_credited, 0)::BIGINT AS num_credited, coalesce(d.num_updates, 0)::BIGINT AS num_updates,
       CASE WHEN d.num_groups IS NULL THEN 'waiting'
            WHEN d.num_updates > 0 AND d.group_std > 0 THEN 'trained'
            WHEN d.num_updates > 0 THEN 'no signal'
            WHEN d.num_judged = d.num_completions AND d.num_unassigned = d.num_judged THEN 'null verdicts'
            ELSE 'in progress' END AS outcome
FROM epochs
JOIN (SELECT run, prompt_id FROM prompts WHERE purpose = 'train') USING (run)
LEFT JOIN drawn d USING (run, epoch, prompt_id)
UNION ALL
SELECT run, epoch::INTEGER, prompt_id, NULL, 0, 0, 0, 0, 0, 0, reason
FROM epochs JOIN (SELECT run, prompt_id, reason FROM dropped_prompts WHERE purpose = 'train') USING (run);
