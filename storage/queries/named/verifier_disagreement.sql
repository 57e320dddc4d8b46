-- Where verifiers differ: every two that judged the same rollouts of the run, how many completions got which two statuses
-- (agreement too, so that shares can be read), and one of them with both extracted answers. Another verifier's verdicts
-- are added by tempo recredit RUN --verifier NAME@VERSION.
WITH judged AS ( -- one verdict per rollout, verifier and version: training's before a recredit's with other rewards
    SELECT step, rollout_id, verifier || '@' || verifier_version AS verifier, status, extracted_answer AS answer
    FROM verdicts WHERE run = $run
    QUALIFY row_number() OVER (
        PARTITION BY step, rollout_id, verifier, verifier_version ORDER BY purpose = 'recredit', purpose, label) = 1
)
SELECT a.verifier AS verifier_a, a.status AS status_a, b.verifier AS verifier_b, b.status AS status_b,
       count(*) AS completions,
       count(*) / sum(count(*)) OVER (PARTITION BY a.verifier, b.verifier) AS share,
       min(a.rollout_id) AS example,
       arg_min({'found': a.answer}, a.rollout_id).found AS answer_a,
       arg_min({'found': b.answer}, a.rollout_id).found AS answer_b
FROM judged a JOIN judged b ON b.step = a.step AND b.rollout_id = a.rollout_id AND b.verifier > a.verifier
GROUP BY a.verifier, a.status, b.verifier, b.status
ORDER BY verifier_a, verifier_b, status_a <> status_b DESC, completions DESC, status_a, status_b;
