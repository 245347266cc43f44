export { PolicyError, type PolicyErrorDetails } from './errors.ts';
export type { Condition, PolicySpec, VolumeFacts } from './policy.ts';
export { Schedule } from './schedule.ts';
