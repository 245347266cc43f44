/** What a policy is: conditions, of which any one makes it due. What is done then is for others to know. */

export type Condition =
  /** At the times of a schedule (`schedule.ts`). */
  | { readonly kind: 'schedule'; readonly pattern: string; readonly timeZone: string }
  /** So long after the last one that succeeded began; at once where none has. */
  | { readonly kind: 'every'; readonly everyMs: number }
  /** When so many bytes have changed since the last one that succeeded; at once where none has. */
  | { readonly kind: 'changed'; readonly bytes: number }
  /** When the delta store is so full, from 0 to 1. */
  | { readonly kind: 'deltas'; readonly fill: number };

export interface PolicySpec {
  /** Distinct among those of a volume. */
  readonly name: string;
  /** At least one. */
  readonly conditions: readonly Condition[];
  /** What the clock makes due begins up to so much later, so that many volumes do not begin at one instant. */
  readonly jitterMs: number;
  /** So long after it was due, and not begun, a policy is overdue. */
  readonly graceMs: number;
  /** Whether a schedule's time that passed while nothing could be begun is made up for, once. */
  readonly catchUp: boolean;
}

/** What of the volume conditions ask for; a member that is left out is not known, or there is no such thing. */
export interface VolumeFacts {
  /** Since the last one that succeeded; infinite where everything counts as changed. */
  readonly changedBytes?: number | undefined;
  /** How full the delta store is, from 0 to 1. */
  readonly deltaFill?: number | undefined;
}
