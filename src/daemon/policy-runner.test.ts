/**
 * Goal: policies run when they are due, one at a time and behind what somebody started by hand; every outcome is kept
 * before the next begins and is known after a restart; a reload disturbs nothing that runs; too few copies are told
 * once when it happens and once when it is over; what fails ends nothing.
 *
 * Method: a runner with a clock and a timer of the test's, runs that the test ends, and records in a real file.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { type Deferred, deferred, LIMITS, ManualClock, type Timer } from '../base/index.ts';
import type { VolumeFacts } from '../policy/index.ts';
import type { VolumePolicy } from './policy-config.ts';
import {
  POLICY_FILE,
  type PolicyOutcome,
  type PolicyRecord,
  type PolicyRecords,
  readPolicyRecords,
  withOutcome,
  writePolicyRecords,
} from './policy-record.ts';
import { policiesAtRest, type Performed, type PolicyEvent, PolicyRunner } from './policy-runner.ts';

const START = Date.parse('2026-05-01T00:00:00Z');
const HOUR = 3_600_000;
const VOLUME = { name: 'vol', volumeId: 'feed' };

/** Files that are being written. */
const saving = new Set<Promise<void>>();

async function save(directory: string, records: PolicyRecords): Promise<void> {
  const saved = writePolicyRecords(directory, records);
  saving.add(saved);
  await saved.finally(() => saving.delete(saved));
}

/** Lets everything that is ready happen, and what follows from it. */
async function settle(): Promise<void> {
  do {
    await Promise.all(saving);
    for (let turn = 0; turn < 10; turn += 1) await new Promise((resolve) => setImmediate(resolve));
  } while (saving.size > 0);
}

function policyOf(name: string, everyMs = 6 * HOUR): VolumePolicy {
  return {
    name,
    conditions: [{ kind: 'every', everyMs }],
    jitterMs: 0,
    graceMs: HOUR,
    catchUp: true,
    action: { kind: 'snapshot', prefix: 's-', suffix: '', keep: 3 },
  };
}

/** A server of one volume. */
class World {
  readonly clock = new ManualClock(START);
  readonly directory: string;
  readonly begun: string[] = [];
  readonly told: PolicyEvent[] = [];
  readonly warnings: string[] = [];
  /** Runs under way, by the names of their policies. */
  readonly runs = new Map<string, Deferred<Performed>>();
  facts: VolumeFacts = {};
  isBusy = false;
  copies = 2;
  runner: PolicyRunner;
  #timer: { readonly atMs: number; readonly fire: () => void } | undefined;

  constructor(t: Test, policies: readonly VolumePolicy[], minimumCopies?: number) {
    this.directory = t.testdir();
    this.runner = this.start(policies, minimumCopies);
  }

  get records(): PolicyRecords {
    return readPolicyRecords(this.directory, VOLUME.volumeId, (sentence) => this.warnings.push(sentence));
  }

  start(policies: readonly VolumePolicy[], minimumCopies?: number): PolicyRunner {
    const timer: Timer = (milliseconds, fire) => {
      const own = { atMs: this.clock.now() + milliseconds, fire };
      this.#timer = own;
      return () => {
        if (this.#timer === own) this.#timer = undefined;
      };
    };
    this.runner = new PolicyRunner({
      volume: VOLUME,
      clock: this.clock,
      timer,
      records: this.records,
      save: (records) => save(this.directory, records),
      perform: ({ name }, signal) => {
        this.begun.push(name);
        const run = deferred<Performed>();
        signal.addEventListener('abort', () => run.reject(signal.reason));
        this.runs.set(name, run);
        return run.promise;
      },
      stateOf: (error) => (error instanceof RangeError ? 'cancelled' : 'failed'),
      factsOf: () => this.facts,
      isBusy: () => this.isBusy,
      copiesOf: () => ({
        backedUp: { count: 9, where: [] },
        notBackedUp: { count: this.copies, where: ['home'] },
      }),
      tell: (event) => this.told.push(event),
      warn: (sentence) => this.warnings.push(sentence),
    });
    this.runner.setConfig({ policies, minimumCopies });
    return this.runner;
  }

  /** Goes on in time, from timer to timer. */
  async pass(milliseconds: number): Promise<void> {
    const untilMs = this.clock.now() + milliseconds;
    await settle();
    while (this.#timer !== undefined && this.#timer.atMs <= untilMs) {
      const { atMs, fire } = this.#timer;
      this.clock.advance(Math.max(0, atMs - this.clock.now()));
      this.#timer = undefined;
      fire();
      await settle();
    }
    this.clock.advance(untilMs - this.clock.now());
    await settle();
  }

  async end(name: string, performed: Performed = {}): Promise<void> {
    this.runs.get(name)?.resolve(performed);
    await settle();
  }

  async fail(name: string, error: Error): Promise<void> {
    this.runs.get(name)?.reject(error);
    await settle();
  }

  outcomes(name: string): readonly PolicyOutcome[] {
    return this.records.policies.find((record) => record.name === name)?.outcomes ?? [];
  }
}

t.test('one at a time, each outcome kept before the next begins', async (t) => {
  const world = new World(t, [policyOf('a'), policyOf('b')]);
  await world.pass(0);
  t.strictSame(world.begun, ['a']);
  t.match(world.records.policies[0]?.running, { cause: 'every', dueMs: START, startedMs: START });
  await world.pass(HOUR);
  t.match(world.runner.status().policies, [{ state: 'running' }, { state: 'waiting', nextMs: START }]);
  await world.end('a', { snapshot: 's-1' });
  t.strictSame(world.begun, ['a', 'b']);
  t.strictSame(world.outcomes('a'), [
    { dueMs: START, cause: 'every', startedMs: START, endedMs: START + HOUR, state: 'done', snapshot: 's-1' },
  ]);
  t.equal(world.records.policies[0]?.running, undefined);
  t.match(world.told, [
    { kind: 'begun', policy: 'a', volume: 'vol' },
    { kind: 'ended', policy: 'a', outcome: { state: 'done' } },
    { kind: 'begun', policy: 'b' },
  ]);
  await world.end('b');
  await world.pass(5 * HOUR);
  t.strictSame(world.begun, ['a', 'b', 'a'], 'six hours after its beginning, and b an hour later');
  await world.runner.stop();
});

t.test('what somebody started by hand is waited for', async (t) => {
  const world = new World(t, []);
  world.isBusy = true;
  world.runner.setConfig({ policies: [policyOf('a')] });
  await world.pass(HOUR);
  t.strictSame(world.begun, []);
  t.match(world.runner.status().policies, [{ state: 'waiting' }]);
  world.isBusy = false;
  await world.pass(LIMITS.policyPollMs);
  t.strictSame(world.begun, ['a']);
  await world.runner.stop();
});

t.test('a stop interrupts what runs, a crash too; both are known afterwards and made up for', async (t) => {
  const policies = [policyOf('a')];
  const world = new World(t, policies);
  await world.pass(0);
  await world.runner.stop();
  t.match(world.outcomes('a'), [{ state: 'interrupted', reason: 'The server stops' }]);
  world.start(policies);
  await world.pass(LIMITS.policyRetryMsMin);
  t.strictSame(world.begun, ['a', 'a']);
  // Nobody stops this one: as if its process had been killed.
  const crashed = world.records;
  t.match(policiesAtRest(crashed, world.clock.now())?.policies, [
    { state: 'not-served', failures: 2, outcomes: [{}, { state: 'interrupted' }] },
  ]);
  world.start(policies);
  await world.pass(0);
  t.match(world.outcomes('a'), [{}, { reason: 'The serving process ended while it ran' }]);
  t.equal(world.begun.length, 2, 'what may have killed it is not begun at once');
  await world.pass(2 * LIMITS.policyRetryMsMin);
  t.equal(world.begun.length, 3);
  await world.end('a');
  t.match(world.runner.status().policies, [{ failures: 0, lastDone: { cause: 'retry' } }]);
  await world.runner.stop();
});

t.test('failures are kept with their reason, and cancellations by their name', async (t) => {
  const world = new World(t, [policyOf('a')]);
  await world.pass(0);
  await world.fail('a', new Error(`${'x'.repeat(LIMITS.policyReasonLengthMax)}\nend`));
  const [failed] = world.outcomes('a');
  t.match(failed, { state: 'failed', reason: /^x+\.\.\.$/ });
  t.equal(failed?.reason?.length, LIMITS.policyReasonLengthMax);
  await world.pass(LIMITS.policyRetryMsMin);
  await world.fail('a', new RangeError('by hand'));
  t.match(world.outcomes('a'), [{}, { state: 'cancelled', reason: 'by hand' }]);
  await world.runner.stop();
});

t.test('a reload takes what is new and leaves alone what runs', async (t) => {
  const world = new World(t, [policyOf('a'), policyOf('b')]);
  await world.pass(0);
  world.runner.setConfig({ policies: [policyOf('c'), policyOf('b', HOUR)] });
  await settle();
  t.match(
    world.runner.status().policies.map(({ name, state }) => [name, state]),
    [
      ['c', 'waiting'],
      ['b', 'waiting'],
      ['a', 'running'],
    ],
  );
  await world.end('a');
  t.strictSame(world.begun, ['a', 'c'], 'the order of the new config');
  t.notOk(
    world.records.policies.some(({ name }) => name === 'a'),
    'nothing is kept of one that is gone',
  );
  await world.end('c');
  await world.end('b');
  await world.pass(HOUR);
  t.strictSame(world.begun, ['a', 'c', 'b', 'b'], 'an hour later, as is said now');
  await world.runner.stop();
});

t.test('too few copies are told once, and that it is over', async (t) => {
  const world = new World(t, [], 2);
  await world.pass(HOUR);
  t.strictSame(world.told, []);
  world.copies = 1;
  await world.pass(HOUR);
  t.match(world.told, [{ kind: 'copies', count: 1, minimum: 2, where: ['home'] }]);
  t.equal(world.told.length, 1);
  world.copies = 2;
  await world.pass(HOUR);
  t.match(world.told.slice(1), [{ count: 2, minimum: 2 }]);
  t.equal(world.told.length, 2);
  t.equal(world.records.minimumCopies, 2);
  await world.runner.stop();
});

t.test('a volume without policies gets no file, and one whose policies go keeps none of them', async (t) => {
  const world = new World(t, []);
  await world.pass(HOUR);
  await world.runner.stop();
  t.throws(() => readFileSync(join(world.directory, POLICY_FILE)), { code: 'ENOENT' });
  t.equal(policiesAtRest(world.records, START), undefined);
  world.start([policyOf('a')]);
  await world.pass(0);
  await world.end('a');
  await world.runner.stop();
  world.start([]);
  await world.runner.stop();
  t.strictSame(world.records.policies, []);
});

t.test('records that cannot be read or written are told, and end nothing', async (t) => {
  const world = new World(t, [policyOf('a')]);
  await world.pass(0);
  await world.end('a');
  await world.runner.stop();
  const path = join(world.directory, POLICY_FILE);
  const good = readFileSync(path, 'utf8');
  t.equal(
    readPolicyRecords(world.directory, 'other', () => t.fail()).policies.length,
    0,
    'of another volume',
  );
  writeFileSync(path, good.replace('"done"', '"dome"'));
  t.strictSame(world.records.policies, []);
  t.match(world.warnings, [/not known: File .*policies.json is damaged/]);
  const runner = new PolicyRunner({
    volume: VOLUME,
    clock: world.clock,
    timer: () => () => undefined,
    records: { volumeId: 'feed', minimumCopies: null, policies: [] },
    save: async () => Promise.reject(new Error('disk full')),
    perform: async () => ({}),
    stateOf: () => 'failed',
    factsOf: () => ({}),
    isBusy: () => false,
    copiesOf: () => ({ backedUp: { count: 1, where: [] }, notBackedUp: { count: 1, where: [] } }),
    tell: () => undefined,
    warn: (sentence) => world.warnings.push(sentence),
  });
  runner.setConfig({ policies: [policyOf('a')], minimumCopies: undefined });
  await settle();
  t.match(runner.status().policies, [{ state: 'idle', outcomes: [{ state: 'done' }] }]);
  t.match(world.warnings.at(-1), /cannot be kept: disk full/);
  await runner.stop();
});

t.test('so many outcomes are kept, and the last one that was done', async (t) => {
  const run = { dueMs: 1, cause: 'every', startedMs: 1, endedMs: 2 } as const;
  let record: PolicyRecord = {
    name: 'a',
    does: '',
    sinceMs: 0,
    schedules: '',
    beginByMs: null,
    outcomes: [],
  };
  record = withOutcome(record, { ...run, state: 'done', set: 'S' });
  for (let count = 0; count < LIMITS.policyOutcomeCountMax; count += 1)
    record = withOutcome(record, { ...run, state: 'failed', reason: `${count}` });
  t.equal(record.outcomes.length, LIMITS.policyOutcomeCountMax);
  t.match(record.lastDone, { set: 'S' });
  t.match(record.outcomes[0], { reason: '0' });
});
