/**
 * Runs the policies of one served volume: looks when something may be due, does it, and keeps what became of it.
 *
 *     timer -> look -> begin: record -> perform (policy-actions.ts) -> end: record, tell -> look
 *
 * When and in which order is for `PolicyQueue` to say; what a policy does is given. A run that begins is recorded first,
 * so that one which the end of the process breaks off is known after a restart, and its policy is due again.
 *
 * It also watches how many copies there are of what is not backed up yet, where a minimum is set: falling below it is
 * told when it happens, and when it is over.
 *
 * Nothing that fails here ends the serving: it is an outcome, or a warning where even that cannot be written.
 */

import { assert, type Clock, LIMITS, messageOf, type Timer } from '../base/index.ts';
import {
  type Cause,
  type DueRun,
  PolicyQueue,
  type RunState,
  schedulesOf,
  type VolumeFacts,
} from '../policy/index.ts';
import type { Copies } from './copies.ts';
import type { PolicedVolume, VolumePolicy } from './policy-config.ts';
import {
  pastOf,
  type PolicyOutcome,
  type PolicyRecord,
  type PolicyRecords,
  withOutcome,
  withoutBrokenRun,
} from './policy-record.ts';

/** How long the longest sleep is: a clock that is set, or a machine that slept, is noticed after this. */
const SLEEP_MS_MAX = 60_000;
/** The shortest one. */
const SLEEP_MS_MIN = 100;

/** What a run came to, where it was done. */
export type Performed = Pick<
  PolicyOutcome,
  'warning' | 'set' | 'level' | 'bytesRead' | 'bytesStored' | 'consumer' | 'removed' | 'snapshot'
>;

/** What is told to the operator. */
export type PolicyEvent =
  | {
      readonly kind: 'begun';
      readonly volume: string;
      readonly policy: string;
      readonly cause: Cause;
      readonly dueMs: number;
    }
  | {
      readonly kind: 'ended';
      readonly volume: string;
      readonly policy: string;
      readonly outcome: PolicyOutcome;
    }
  | {
      readonly kind: 'copies';
      readonly volume: string;
      /** Of what is not backed up yet. */
      readonly count: number;
      readonly where: readonly string[];
      readonly minimum: number;
    };

export interface PolicyRunnerOptions {
  readonly volume: { readonly name: string; readonly volumeId: string };
  readonly clock: Clock;
  readonly timer: Timer;
  /** What was kept of former runs. */
  readonly records: PolicyRecords;
  /** Keeps it, durably. */
  readonly save: (records: PolicyRecords) => Promise<void>;
  /** Does what a policy says; the signal fires when the server stops. */
  readonly perform: (policy: VolumePolicy, signal: AbortSignal) => Promise<Performed>;
  /** How a run that threw this ended. */
  readonly stateOf: (error: unknown) => Exclude<RunState, 'done'>;
  /** Of the volume now, for a policy that was last done so. */
  readonly factsOf: (policy: VolumePolicy, lastDone: PolicyOutcome | undefined) => VolumeFacts;
  /** Whether something that no policy has begun runs on the volume: policies wait for it. */
  readonly isBusy: () => boolean;
  readonly copiesOf: () => Copies;
  readonly tell: (event: PolicyEvent) => void;
  readonly warn: (sentence: string) => void;
}

/** What `status` shows of a policy. */
export interface PolicyStatus extends ShownRecord {
  readonly state: 'idle' | 'waiting' | 'running' | 'not-served';
  /** When the clock makes it due next. */
  readonly nextMs: number | null;
  readonly isOverdue: boolean;
  /** Runs in a row that were not done. */
  readonly failures: number;
}

export interface PoliciesStatus {
  readonly minimumCopies?: number;
  readonly policies: readonly PolicyStatus[];
}

export class PolicyRunner {
  readonly #options: PolicyRunnerOptions;
  readonly #queue: PolicyQueue;
  readonly #stopping = new AbortController();
  #policies = new Map<string, VolumePolicy>();
  #records = new Map<string, PolicyRecord>();
  #minimumCopies: number | undefined;
  #isBelow = false;
  #cancelTimer: () => void = () => undefined;
  #running: Promise<void> | undefined;
  #saving: Promise<void> = Promise.resolve();

  constructor(options: PolicyRunnerOptions) {
    this.#options = options;
    this.#queue = new PolicyQueue(options.volume.volumeId);
    for (const record of options.records.policies) this.#records.set(record.name, withoutBrokenRun(record));
  }

  /** Goes by this from now on, in the place of what there was before; what runs ends as it began. */
  setConfig({ policies, minimumCopies }: Pick<PolicedVolume, 'policies' | 'minimumCopies'>): void {
    const nowMs = this.#options.clock.now();
    this.#policies = new Map(policies.map((policy) => [policy.name, policy]));
    this.#minimumCopies = minimumCopies;
    this.#queue.setPolicies(
      policies,
      (name) => {
        const record = this.#records.get(name);
        return record === undefined ? undefined : pastOf(record);
      },
      nowMs,
    );
    // In the order of the config; what is known of policies that are gone goes, but of one that runs.
    const running = this.#queue.running?.name;
    const before = this.#records;
    this.#records = new Map(
      policies.map((policy) => {
        const fresh = { name: policy.name, sinceMs: nowMs, beginByMs: null, outcomes: [] };
        const record = before.get(policy.name) ?? fresh;
        const schedules = schedulesOf(policy.conditions);
        return [policy.name, { ...record, does: describeAction(policy), schedules }];
      }),
    );
    const leaving = running === undefined ? undefined : before.get(running);
    if (leaving !== undefined && !this.#records.has(leaving.name)) this.#records.set(leaving.name, leaving);
    this.#look();
    const isNothing = policies.length === 0 && minimumCopies === undefined && before.size === 0;
    if (!isNothing) void this.#save();
  }

  status(): PoliciesStatus {
    const nowMs = this.#options.clock.now();
    const policies = [...this.#records.values()].map((record) => ({
      ...shownOf(record),
      // One that is gone from the config is there only while it runs.
      state: 'running' as const,
      nextMs: null,
      isOverdue: false,
      failures: 0,
      ...this.#queue.stateOf(record.name, nowMs),
    }));
    return {
      ...(this.#minimumCopies === undefined ? {} : { minimumCopies: this.#minimumCopies }),
      policies,
    };
  }

  /** Begins nothing more, ends what runs, and has everything kept when it returns. */
  async stop(): Promise<void> {
    this.#cancelTimer();
    this.#stopping.abort(new Error('The server stops'));
    await this.#running;
    await this.#saving;
  }

  #look(): void {
    this.#cancelTimer();
    if (this.#stopping.signal.aborted) return;
    const { clock, timer, isBusy } = this.#options;
    const nowMs = clock.now();
    try {
      this.#watchCopies();
      this.#queue.look(nowMs, (name) => this.#factsOf(name));
      if (this.#queue.waiting.length > 0 && this.#running === undefined && !isBusy()) {
        const due = this.#queue.begin(nowMs);
        if (due !== undefined) this.#running = this.#run(due, nowMs);
      }
    } catch (error) {
      // Such as a volume that is just being closed; the next look may do.
      this.#options.warn(`Policies of ${this.#options.volume.name} were not looked at: ${messageOf(error)}`);
    }
    this.#cancelTimer = timer(this.#sleepMs(nowMs), () => this.#look());
  }

  #sleepMs(nowMs: number): number {
    const { policyPollMs } = LIMITS;
    const mustPoll =
      this.#queue.asksForFacts || this.#queue.waiting.length > 0 || this.#minimumCopies !== undefined;
    const nextMs = this.#queue.nextLookMs() ?? Number.POSITIVE_INFINITY;
    const longest = mustPoll ? policyPollMs : SLEEP_MS_MAX;
    return Math.min(longest, Math.max(SLEEP_MS_MIN, nextMs - nowMs));
  }

  #factsOf(name: string): VolumeFacts {
    const policy = this.#policies.get(name);
    return policy === undefined ? {} : this.#options.factsOf(policy, this.#records.get(name)?.lastDone);
  }

  /** Never rejects. */
  async #run(due: DueRun, startedMs: number): Promise<void> {
    const { volume, tell, clock, perform, stateOf } = this.#options;
    const { name, cause, dueMs } = due;
    const policy = this.#policies.get(name);
    assert(policy !== undefined, `Policy ${name} is due and not there`);
    const begun = { dueMs, cause, startedMs };
    let outcome: PolicyOutcome;
    try {
      this.#change(name, (record) => ({ ...record, running: begun }));
      await this.#save();
      tell({ kind: 'begun', volume: volume.name, policy: name, cause, dueMs });
      const performed = await perform(policy, this.#stopping.signal);
      outcome = { ...begun, endedMs: clock.now(), state: 'done', ...performed };
    } catch (error) {
      // Nobody has cancelled what ends because the server stops.
      const state = this.#stopping.signal.aborted ? 'interrupted' : stateOf(error);
      outcome = { ...begun, endedMs: clock.now(), state, reason: messageOf(error) };
    }
    this.#change(name, (record) => withOutcome(record, outcome));
    this.#queue.end(outcome);
    // One that is no policy any more is not kept longer than it ran.
    if (!this.#policies.has(name)) this.#records.delete(name);
    await this.#save();
    tell({ kind: 'ended', volume: volume.name, policy: name, outcome });
    this.#running = undefined;
    this.#look();
  }

  #change(name: string, change: (record: PolicyRecord) => PolicyRecord): void {
    const record = this.#records.get(name);
    if (record !== undefined) this.#records.set(name, change(record));
  }

  /** Keeps what there is now, one after the other. Never rejects: what cannot be written is told. */
  #save(): Promise<void> {
    const { volume, save, warn, clock } = this.#options;
    this.#saving = this.#saving.then(async () => {
      const nowMs = clock.now();
      const policies = [...this.#records.values()].map((record) => ({
        ...record,
        beginByMs: this.#queue.stateOf(record.name, nowMs)?.beginByMs ?? null,
      }));
      try {
        await save({ volumeId: volume.volumeId, minimumCopies: this.#minimumCopies ?? null, policies });
      } catch (error) {
        warn(`What became of the policies of ${volume.name} cannot be kept: ${messageOf(error)}`);
      }
    });
    return this.#saving;
  }

  #watchCopies(): void {
    const minimum = this.#minimumCopies;
    if (minimum === undefined) {
      this.#isBelow = false;
      return;
    }
    const { volume, tell, copiesOf } = this.#options;
    const { count, where } = copiesOf().notBackedUp;
    if (count < minimum === this.#isBelow) return;
    this.#isBelow = count < minimum;
    tell({ kind: 'copies', volume: volume.name, count, where, minimum });
  }
}

/** What is kept of policies, where nobody runs them. */
export function policiesAtRest(
  { policies, minimumCopies }: PolicyRecords,
  nowMs: number,
): PoliciesStatus | undefined {
  if (policies.length === 0 && minimumCopies === null) return undefined;
  return {
    ...(minimumCopies === null ? {} : { minimumCopies }),
    policies: policies.map((kept) => {
      const record = withoutBrokenRun(kept);
      const isOverdue = record.beginByMs !== null && record.beginByMs < nowMs;
      const failures =
        record.outcomes.length - 1 - record.outcomes.findLastIndex(({ state }) => state === 'done');
      return { ...shownOf(record), state: 'not-served' as const, nextMs: null, isOverdue, failures };
    }),
  };
}

type ShownRecord = Omit<PolicyRecord, 'schedules' | 'running'>;

function shownOf({ name, does, sinceMs, beginByMs, lastDone, outcomes }: PolicyRecord): ShownRecord {
  return { name, does, sinceMs, beginByMs, ...(lastDone === undefined ? {} : { lastDone }), outcomes };
}

/** For people. */
function describeAction({ action }: VolumePolicy): string {
  if (action.kind === 'snapshot') return `snapshot, ${action.keep} kept`;
  return `backup to ${action.params.store}, ${action.params.level}`;
}
