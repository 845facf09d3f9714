// Votes over samples {scores: one per response or null, meta_reward}: docs/voting.md defines them.

const mean = (samples, weights) => {
  const total = weights.reduce((sum, weight) => sum + weight, 0)
  if (!total) return null
  return samples[0].scores.map((_, response) => samples.reduce((sum, sample, i) => sum + weights[i] * sample.scores[response], 0) / total)
}

// Mean of the samples that parsed.
export function vote(samples) {
  const parsed = samples.filter(sample => sample.scores)
  return mean(parsed, parsed.map(() => 1))
}

// Mean of the half of all samples with the highest meta reward; those that tie at the cut share the places that are left.
export function guidedVote(samples) {
  const parsed = samples.filter(sample => sample.scores && sample.meta_reward != null)
  const places = Math.max(1, Math.floor(samples.length / 2))
  const rewards = parsed.map(sample => sample.meta_reward).sort((a, b) => b - a)
  if (!rewards.length) return null
  const cut = rewards[Math.min(places, rewards.length) - 1]
  const above = rewards.filter(reward => reward > cut).length
  const share = Math.min(1, (places - above) / rewards.filter(reward => reward === cut).length)
  return mean(parsed, parsed.map(sample => sample.meta_reward > cut ? 1 : sample.meta_reward === cut ? share : 0))
}
