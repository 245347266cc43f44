/**
 * The policies of one volume: which of them are due, which one is next, and when to look again.
 *
 *     idle  --look: a condition holds-->  waiting  --begin: nobody runs-->  running  --end-->  idle
 *
 * `look` is told the time and what is known of the volume; `begin` and `end` are called by whoever does what the
 * policy says. Nothing is counted in ticks that were seen: a time of a schedule is due where it lies after the
 * beginning of the last run, whenever somebody looks. So a time that passed while nobody looked, while another policy
 * ran or while the machine was off is made up for, once, and one that passed while the policy waited is dealt with by
 * the run that it waits for.
 *
 * The clock may be set back. Then what lies in the future is taken for now: a schedule's time may come twice, and
 * none is lost.
 */

import { assert, LIMITS, SeededRandom } from '../base/index.ts';
import type { Condition, PolicySpec, VolumeFacts } from './policy.ts';
import { Schedule } from './schedule.ts';

/** How a run ended; `interrupted` is one that was broken off by the end of the process. */
export const RUN_STATES = ['done', 'failed', 'cancelled', 'interrupted'] as const;
export type RunState = (typeof RUN_STATES)[number];

/** Why a policy is due. */
export const CAUSES = ['schedule', 'every', 'changed', 'deltas', 'retry'] as const;
export type Cause = (typeof CAUSES)[number];

export interface PastRun {
  readonly startedMs: number;
  readonly endedMs: number;
  readonly state: RunState;
}

/** What is known of a policy from before. */
export interface PolicyPast {
  /** When it was first heard of. */
  readonly sinceMs: number;
  /** Its schedules then, as `schedulesOf` says them. */
  readonly schedules: string;
  /** The last one that was done, and the last ones, oldest first. */
  readonly lastDone?: PastRun | undefined;
  readonly runs: readonly PastRun[];
}

export interface DueRun {
  readonly name: string;
  /** Since when it is due, with its jitter. */
  readonly dueMs: number;
  readonly cause: Cause;
}

export interface PolicyState {
  readonly state: 'idle' | 'waiting' | 'running';
  /** When the clock makes it due next, or made it due; null where only facts do. */
  readonly nextMs: number | null;
  /** By when it should have begun; null where only facts make it due, and they do not. */
  readonly beginByMs: number | null;
  /** It should have begun by now. */
  readonly isOverdue: boolean;
  /** Runs in a row that were not done. */
  readonly failures: number;
}

interface Entry {
  spec: PolicySpec;
  schedules: readonly Schedule[];
  /** Times of the schedules up to here are dealt with. */
  handledMs: number;
  sinceMs: number;
  lastDoneMs: number | undefined;
  /** Of the last run of any outcome. */
  lastEndedMs: number | undefined;
  lastState: RunState | undefined;
  failures: number;
  /** Whether no condition of facts held at some time since the last run ended. */
  hasSettled: boolean;
}

/** The schedules of conditions as one text: another one means that what passed by the old ones is of no interest. */
export function schedulesOf(conditions: readonly Condition[]): string {
  return conditions
    .flatMap((one) => (one.kind === 'schedule' ? [`${one.pattern} ${one.timeZone}`] : []))
    .join('; ');
}

export class PolicyQueue {
  /** Tells volumes apart whose policies have the same names and times. */
  readonly #seed: string;
  #entries = new Map<string, Entry>();
  #waiting: DueRun[] = [];
  #running: DueRun | undefined;

  constructor(seed: string) {
    this.#seed = seed;
  }

  /** In the order in which they will run. */
  get waiting(): readonly DueRun[] {
    return this.#waiting;
  }

  get running(): DueRun | undefined {
    return this.#running;
  }

  /**
   * Sets the policies that there are, in the place of those before. One of a name that was there goes on as it was,
   * by its new conditions; what waits is looked at anew, what runs goes on.
   *
   * @param pastOf what is known of a policy that was not there.
   */
  setPolicies(
    specs: readonly PolicySpec[],
    pastOf: (name: string) => PolicyPast | undefined,
    nowMs: number,
  ): void {
    const before = this.#entries;
    this.#entries = new Map(
      specs.map((spec) => {
        const known = before.get(spec.name);
        return [
          spec.name,
          known === undefined ? entryOf(spec, pastOf(spec.name), nowMs) : changed(known, spec, nowMs),
        ];
      }),
    );
    this.#waiting = [];
  }

  /**
   * Queues what is due.
   *
   * @param factsOf what the conditions of a policy ask for that are not of the clock; asked only where one has such.
   */
  look(nowMs: number, factsOf: (name: string) => VolumeFacts): void {
    for (const [name, entry] of this.#entries) {
      clampToPast(entry, nowMs);
      if (this.#isBusy(name)) continue;
      const due = this.#dueByClock(entry, nowMs) ?? dueByFacts(entry, nowMs, factsOf);
      if (due !== undefined) this.#waiting.push({ name, ...due });
    }
    // Sorting keeps those that became due at one instant in the order of the config.
    this.#waiting.sort((one, other) => one.dueMs - other.dueMs);
  }

  /** Takes the next one, where none runs; `end` must follow. */
  begin(nowMs: number): DueRun | undefined {
    if (this.#running !== undefined) return undefined;
    this.#running = this.#waiting.shift();
    const entry = this.#entries.get(this.#running?.name ?? '');
    if (entry !== undefined) entry.handledMs = nowMs;
    return this.#running;
  }

  /** Ends what runs. */
  end(run: PastRun): void {
    assert(this.#running !== undefined, 'A policy ended that does not run');
    const entry = this.#entries.get(this.#running.name);
    this.#running = undefined;
    if (entry === undefined) return;
    if (!entry.spec.catchUp) entry.handledMs = run.endedMs;
    if (run.state === 'done') entry.lastDoneMs = run.startedMs;
    entry.failures = run.state === 'done' ? 0 : entry.failures + 1;
    entry.lastEndedMs = run.endedMs;
    entry.lastState = run.state;
    entry.hasSettled = false;
  }

  /** When the clock makes the next idle policy due; undefined where it does none. */
  nextLookMs(): number | undefined {
    const times = [...this.#entries]
      .filter(([name]) => !this.#isBusy(name))
      .flatMap(([, entry]) => this.#clockTimes(entry).map(({ dueMs }) => dueMs));
    return times.length === 0 ? undefined : Math.min(...times);
  }

  /** Whether there are conditions that are not of the clock: somebody has to look every now and then. */
  get asksForFacts(): boolean {
    return [...this.#entries.values()].some(({ spec }) => spec.conditions.some(isOfFacts));
  }

  /** Where a policy stands; undefined where there is none of that name. */
  stateOf(name: string, nowMs: number): PolicyState | undefined {
    const entry = this.#entries.get(name);
    if (entry === undefined) return undefined;
    const waiting = this.#waiting.find((one) => one.name === name);
    const isRunning = this.#running?.name === name;
    const wanted = [...this.#scheduleTimes(entry), ...this.#everyTimes(entry)].map(({ dueMs }) => dueMs);
    const next = this.#clockTimes(entry).map(({ dueMs }) => dueMs);
    const expectedMs = Math.min(...wanted, ...(waiting === undefined ? [] : [waiting.dueMs]));
    const beginByMs = expectedMs === Number.POSITIVE_INFINITY ? null : expectedMs + entry.spec.graceMs;
    const idleOrWaiting = waiting === undefined ? 'idle' : 'waiting';
    return {
      state: isRunning ? 'running' : idleOrWaiting,
      nextMs: waiting?.dueMs ?? (next.length === 0 ? null : Math.min(...next)),
      beginByMs,
      isOverdue: !isRunning && beginByMs !== null && beginByMs < nowMs,
      failures: entry.failures,
    };
  }

  #isBusy(name: string): boolean {
    return this.#running?.name === name || this.#waiting.some((one) => one.name === name);
  }

  #dueByClock(entry: Entry, nowMs: number): Omit<DueRun, 'name'> | undefined {
    const [first] = this.#clockTimes(entry).sort((one, other) => one.dueMs - other.dueMs);
    return first !== undefined && first.dueMs <= nowMs ? first : undefined;
  }

  /** When the clock makes it due: while it fails, by its schedule or to be tried again. */
  #clockTimes(entry: Entry): Omit<DueRun, 'name'>[] {
    const retryMs = retryTime(entry);
    if (retryMs === undefined) return [...this.#scheduleTimes(entry), ...this.#everyTimes(entry)];
    return [...this.#scheduleTimes(entry), { dueMs: retryMs, cause: 'retry' }];
  }

  #scheduleTimes(entry: Entry): Omit<DueRun, 'name'>[] {
    return entry.schedules.map((schedule) => ({
      dueMs: this.#withJitter(entry.spec, schedule.nextAfter(entry.handledMs)),
      cause: 'schedule',
    }));
  }

  #everyTimes({ spec, lastDoneMs, sinceMs }: Entry): Omit<DueRun, 'name'>[] {
    return spec.conditions.flatMap((one) => {
      if (one.kind !== 'every') return [];
      const timeMs = lastDoneMs === undefined ? sinceMs : lastDoneMs + one.everyMs;
      return [{ dueMs: this.#withJitter(spec, timeMs), cause: 'every' as const }];
    });
  }

  #withJitter({ name, jitterMs }: PolicySpec, timeMs: number): number {
    return timeMs + new SeededRandom(hashOf(`${this.#seed}/${name}/${timeMs}`)).below(jitterMs + 1);
  }
}

function entryOf(spec: PolicySpec, past: PolicyPast | undefined, nowMs: number): Entry {
  const runs = past?.runs ?? [];
  const last = runs.at(-1);
  const sinceMs = past?.sinceMs ?? nowMs;
  const isSame = past?.schedules === schedulesOf(spec.conditions);
  // One that was begun at a time within the jitter's reach may still be to come.
  const skippedMs = spec.catchUp ? sinceMs : Math.max(sinceMs, nowMs - spec.jitterMs);
  const lastDone = runs.findLastIndex(({ state }) => state === 'done');
  return {
    spec,
    schedules: schedulesIn(spec),
    handledMs: isSame ? Math.max(skippedMs, last?.startedMs ?? sinceMs) : nowMs,
    sinceMs,
    lastDoneMs: past?.lastDone?.startedMs,
    lastEndedMs: last?.endedMs,
    lastState: last?.state,
    failures: runs.length - 1 - lastDone,
    hasSettled: false,
  };
}

function changed(entry: Entry, spec: PolicySpec, nowMs: number): Entry {
  if (schedulesOf(entry.spec.conditions) === schedulesOf(spec.conditions))
    return Object.assign(entry, { spec });
  return Object.assign(entry, { spec, schedules: schedulesIn(spec), handledMs: nowMs });
}

function schedulesIn({ conditions }: PolicySpec): readonly Schedule[] {
  return conditions.flatMap((one) =>
    one.kind === 'schedule' ? [new Schedule(one.pattern, one.timeZone)] : [],
  );
}

function clampToPast(entry: Entry, nowMs: number): void {
  entry.handledMs = Math.min(entry.handledMs, nowMs);
  entry.sinceMs = Math.min(entry.sinceMs, nowMs);
  if (entry.lastDoneMs !== undefined) entry.lastDoneMs = Math.min(entry.lastDoneMs, nowMs);
  if (entry.lastEndedMs !== undefined) entry.lastEndedMs = Math.min(entry.lastEndedMs, nowMs);
}

function isOfFacts({ kind }: Condition): boolean {
  return kind === 'changed' || kind === 'deltas';
}

/** When one that failed is tried again; undefined where it did not. */
function retryTime({ failures, lastEndedMs, lastState }: Entry): number | undefined {
  if (failures === 0 || lastEndedMs === undefined) return undefined;
  const { policyRetryMsMin, policyRetryMsMax } = LIMITS;
  // Who cancelled it has a reason, which does not go away at once.
  if (lastState === 'cancelled') return lastEndedMs + policyRetryMsMax;
  return lastEndedMs + Math.min(policyRetryMsMax, policyRetryMsMin * 2 ** Math.min(failures - 1, 30));
}

function dueByFacts(
  entry: Entry,
  nowMs: number,
  factsOf: (name: string) => VolumeFacts,
): Omit<DueRun, 'name'> | undefined {
  const { spec, failures, lastEndedMs } = entry;
  // One that fails is tried again by the clock alone.
  if (failures > 0 || !spec.conditions.some(isOfFacts)) return undefined;
  const facts = factsOf(spec.name);
  const due = spec.conditions.find((one) => holds(one, facts, entry));
  if (due === undefined) {
    entry.hasSettled = true;
    return undefined;
  }
  // What a run does not change it would not by running on and on.
  const isResting = lastEndedMs !== undefined && nowMs < lastEndedMs + LIMITS.policyRetryMsMin;
  return isResting && !entry.hasSettled ? undefined : { dueMs: nowMs, cause: due.kind };
}

function holds(condition: Condition, facts: VolumeFacts, { lastDoneMs }: Entry): boolean {
  if (condition.kind === 'changed')
    return lastDoneMs === undefined || (facts.changedBytes ?? 0) >= condition.bytes;
  return condition.kind === 'deltas' && (facts.deltaFill ?? 0) >= condition.fill;
}

/** FNV-1a, 32 bits: small, and spreads what differs in one digit. Not for secrets. */
function hashOf(text: string): number {
  let hash = 0x811c9dc5;
  for (const byte of Buffer.from(text)) hash = Math.imul(hash ^ byte, 0x01000193);
  return hash >>> 0;
}
