export { PolicyError, type PolicyErrorDetails } from './errors.ts';
export type { Condition, PolicySpec, VolumeFacts } from './policy.ts';
export {
  type Cause,
  CAUSES,
  type DueRun,
  type PastRun,
  type PolicyPast,
  PolicyQueue,
  type PolicyState,
  RUN_STATES,
  type RunState,
  schedulesOf,
} from './policy-queue.ts';
export { Schedule } from './schedule.ts';
