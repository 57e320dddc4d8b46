-- Every rollout has exactly one verdict, and every verdict a rollout.
-- Why: a rollout judged twice counts twice in its group's mean; one that is not judged is lost without a trace.
-- Do: look at the verifier's worker; a verifier that fails must leave a verdict with a NULL reward.
SELECT rollout_id, sum(num_rollouts) AS num_rollouts, sum(num_verdicts) AS num_verdicts
FROM (SELECT rollout_id, 1 AS num_rollouts, 0 AS num_verdicts FROM rollouts
      UNION ALL SELECT rollout_id, 0, 1 FROM verdicts)
GROUP BY rollout_id HAVING sum(num_rollouts) <> 1 OR sum(num_verdicts) <> 1
