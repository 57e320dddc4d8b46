-- Every completion has at least one token, and one log-probability per token.
-- Why: a log-probability that belongs to another token makes every importance ratio after it meaningless.
-- Do: look at the sampling engine; an end-of-sequence token is a token.
SELECT rollout_id, len(token_ids) AS num_tokens, len(sampler_logprobs) AS num_logprobs FROM rollouts
WHERE len(token_ids) <> len(sampler_logprobs) OR len(token_ids) = 0
