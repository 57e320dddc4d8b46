-- Every log-probability is finite and at most 0; 1e-6 more is rounding (float32 near 1 has steps of 1.2e-7).
-- Why: NaN and infinities spread to the whole mini-batch's gradient; a positive one is no probability.
-- Do: look at the sampling engine, at the policy's weights, and at the temperature.
SELECT rollout_id, list_min(sampler_logprobs) AS smallest, list_max(sampler_logprobs) AS largest FROM rollouts
WHERE list_max(sampler_logprobs) > 1e-6 OR list_min(sampler_logprobs) = '-inf' -- NaN is above every number
