/**
 * Which points in time are kept: so many of the last, and the newest of each of the last so many hours, days, weeks,
 * months and years that have one. As restic and borg do it. Pure.
 *
 * Hours and days are those of UTC, weeks begin on Monday, so that a store answers alike wherever it is asked.
 */

export interface RetentionPolicy {
  readonly keepLast?: number;
  readonly keepHourly?: number;
  readonly keepDaily?: number;
  readonly keepWeekly?: number;
  readonly keepMonthly?: number;
  readonly keepYearly?: number;
}

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;

/** The number of the hour, day and so on that a time lies in. 1970 began on a Thursday, three days into its week. */
const RULES = [
  { key: 'keepHourly', name: 'hourly', slotOf: (timeMs: number) => Math.floor(timeMs / HOUR_MS) },
  { key: 'keepDaily', name: 'daily', slotOf: (timeMs: number) => Math.floor(timeMs / DAY_MS) },
  { key: 'keepWeekly', name: 'weekly', slotOf: (timeMs: number) => Math.floor((timeMs / DAY_MS + 3) / 7) },
  { key: 'keepMonthly', name: 'monthly', slotOf: monthOf },
  { key: 'keepYearly', name: 'yearly', slotOf: (timeMs: number) => new Date(timeMs).getUTCFullYear() },
] as const;

function monthOf(timeMs: number): number {
  const date = new Date(timeMs);
  return date.getUTCFullYear() * 12 + date.getUTCMonth();
}

/**
 * What the policy keeps.
 *
 * @param timesMs of the points, newest first by lineage; a clock that was set back does no harm, since only the first
 *   point of an hour, a day and so on counts.
 * @returns for each point the rules that keep it, such as `latest` or `daily`; none is one that goes. The first is
 *   always kept.
 */
export function retain(timesMs: readonly number[], policy: RetentionPolicy): string[][] {
  const reasons = timesMs.map((_, index): string[] => {
    const isLast = index < (policy.keepLast ?? 0);
    return [...(index === 0 ? ['latest'] : []), ...(isLast ? ['last'] : [])];
  });
  for (const { key, name, slotOf } of RULES) {
    const count = policy[key] ?? 0;
    const seen = new Set<number>();
    for (const [index, timeMs] of timesMs.entries()) {
      const slot = slotOf(timeMs);
      if (seen.size >= count || seen.has(slot)) continue;
      seen.add(slot);
      reasons[index]?.push(name);
    }
  }
  return reasons;
}

/** Whether the policy says anything; one that does not would keep nothing but the latest set. */
export function isEmptyPolicy(policy: RetentionPolicy): boolean {
  return Object.values(policy).every((count) => count === undefined || count === 0);
}
