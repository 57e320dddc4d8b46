-- Loss, gradient norm, learning rate and the figures of every update are finite, and it trained on at least one token.
-- Why: a weight that is not finite once stays so for the rest of the run.
-- Do: lower the learning rate, or look for extreme log-probabilities in the rollouts of this step.
SELECT "update", loss, grad_norm, learning_rate, num_tokens, kl, ratio_max, value_loss, critic_grad_norm FROM updates
WHERE num_tokens < 1 OR NOT isfinite(loss) OR NOT isfinite(grad_norm) OR NOT isfinite(learning_rate)
   OR NOT isfinite(kl) OR NOT isfinite(entropy) OR NOT isfinite(ratio_max)
   OR NOT isfinite(value_loss) OR NOT isfinite(critic_grad_norm) OR NOT isfinite(explained_variance)
