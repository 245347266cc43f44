/**
 * Goal: of a volume's policies one runs at a time; none is queued twice; a schedule's time is never missed with
 * catching up, and made up for once; jitter stays in its bounds; failures are tried again later and later.
 *
 * Method: first the cases that have a name, with a clock of the test's. Then days of a volume with random policies,
 * runs of random length and end, times at which nobody looks, and restarts that know only the outcomes that were
 * kept, against an oracle that knows the times of a schedule by arithmetic.
 */
import fc from 'fast-check';
import t from 'tap';
import { LIMITS } from '../base/index.ts';
import type { Condition, PolicySpec, VolumeFacts } from './policy.ts';
import {
  type DueRun,
  type PastRun,
  type PolicyPast,
  PolicyQueue,
  type RunState,
  schedulesOf,
} from './policy-queue.ts';

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const START = Date.parse('2026-05-01T00:00:00Z');

function spec(name: string, conditions: readonly Condition[], more: Partial<PolicySpec> = {}): PolicySpec {
  return { name, conditions, jitterMs: 0, graceMs: HOUR, catchUp: true, ...more };
}

const HOURLY: Condition = { kind: 'schedule', pattern: '0 * * * *', timeZone: 'UTC' };
const SIX_HOURS: Condition = { kind: 'every', everyMs: 6 * HOUR };

/** A queue, and a past that is kept for the next one. */
class World {
  nowMs = START;
  queue: PolicyQueue;
  facts: VolumeFacts = {};
  readonly specs: readonly PolicySpec[];
  readonly pasts = new Map<string, PolicyPast>();
  readonly begun: (DueRun & { readonly startedMs: number })[] = [];
  #startedMs = 0;

  constructor(...specs: readonly PolicySpec[]) {
    this.specs = specs;
    this.queue = this.restart();
  }

  /** What runs is lost. */
  restart(specs = this.specs): PolicyQueue {
    this.queue = new PolicyQueue('seed');
    this.queue.setPolicies(specs, (name) => this.pasts.get(name), this.nowMs);
    for (const { name, conditions } of specs) {
      const past = {
        sinceMs: this.nowMs,
        runs: [],
        ...this.pasts.get(name),
        schedules: schedulesOf(conditions),
      };
      this.pasts.set(name, past);
    }
    return this.queue;
  }

  /** Looks, and begins what is next. */
  look(): DueRun | undefined {
    this.queue.look(this.nowMs, () => this.facts);
    const due = this.queue.begin(this.nowMs);
    if (due !== undefined) {
      this.#startedMs = this.nowMs;
      this.begun.push({ ...due, startedMs: this.nowMs });
    }
    return due;
  }

  end(state: RunState = 'done'): void {
    const name = this.queue.running?.name ?? '';
    const run: PastRun = { startedMs: this.#startedMs, endedMs: this.nowMs, state };
    const past = this.pasts.get(name);
    if (past !== undefined) {
      const runs = [...past.runs, run].slice(-LIMITS.policyOutcomeCountMax);
      this.pasts.set(name, { ...past, runs, ...(state === 'done' ? { lastDone: run } : {}) });
    }
    this.queue.end(run);
  }

  /** Runs of no length, looked for at each step. @returns the minutes from the start at which one began. */
  pass(untilMs: number, stepMs = MINUTE, state: RunState = 'done'): readonly number[] {
    const minutes: number[] = [];
    for (; this.nowMs <= untilMs; this.nowMs += stepMs) {
      while (this.look() !== undefined) {
        minutes.push((this.nowMs - START) / MINUTE);
        this.end(state);
      }
    }
    return minutes;
  }
}

t.test(
  'a schedule begins at its next time, and what passed while nobody looked is made up for once',
  async (t) => {
    const world = new World(spec('p', [HOURLY]));
    t.equal(world.look(), undefined, 'the time itself at which it was first heard of does not count');
    t.equal(world.queue.nextLookMs(), START + HOUR);
    t.strictSame(world.pass(START + 2 * HOUR), [60, 120]);
    world.nowMs = START + 30 * HOUR + MINUTE;
    world.restart();
    t.strictSame(world.pass(START + 32 * HOUR), [30 * 60 + 1, 31 * 60, 32 * 60]);
  },
);

t.test('without catching up what passed is gone, also during a run', async (t) => {
  const world = new World(spec('p', [HOURLY], { catchUp: false }));
  world.nowMs = START + 30 * HOUR + MINUTE;
  world.restart();
  t.strictSame(world.pass(START + 31 * HOUR), [31 * 60]);
  world.nowMs = START + 32 * HOUR;
  t.match(world.look(), { name: 'p' });
  world.nowMs = START + 35 * HOUR + MINUTE;
  world.end();
  t.strictSame(world.pass(START + 36 * HOUR), [36 * 60]);
});

t.test('a time that passes during a run comes once after it', async (t) => {
  const world = new World(spec('p', [HOURLY]));
  world.nowMs = START + HOUR;
  t.match(world.look(), { name: 'p', cause: 'schedule', dueMs: START + HOUR });
  world.nowMs = START + 4 * HOUR + MINUTE;
  t.equal(world.look(), undefined, 'it runs');
  world.end();
  t.strictSame(world.pass(START + 5 * HOUR), [4 * 60 + 1, 5 * 60]);
});

t.test('the time since the last counts from the beginning of the last that was done', async (t) => {
  const world = new World(spec('p', [SIX_HOURS]));
  t.match(world.look(), { cause: 'every' }, 'none was: at once');
  world.nowMs = START + 2 * HOUR;
  world.end();
  t.strictSame(world.pass(START + 13 * HOUR), [6 * 60, 12 * 60]);
  world.restart();
  t.strictSame(world.pass(START + 18 * HOUR), [18 * 60], 'and is known after a restart');
});

t.test(
  'changes and fill make it due; where a run did not help, not before one minute has passed',
  async (t) => {
    const world = new World(spec('p', [{ kind: 'changed', bytes: 100 }]));
    t.match(world.look(), { cause: 'changed' }, 'nothing is saved: all counts as changed');
    world.end();
    world.facts = { changedBytes: 100 };
    t.strictSame(world.pass(START + 2 * MINUTE, MINUTE / 2), [1, 2]);
    world.facts = { changedBytes: 99 };
    t.strictSame(world.pass(START + 9 * MINUTE), []);
    world.facts = { changedBytes: Number.POSITIVE_INFINITY };
    t.equal(world.pass(START + 10 * MINUTE).length, 1);

    world.facts = { changedBytes: 0 };
    world.nowMs = (world.pasts.get('p')?.lastDone?.endedMs ?? 0) + 1;
    t.equal(world.look(), undefined, 'it has helped');
    world.facts = { changedBytes: 100 };
    t.match(world.look(), { cause: 'changed' }, 'so it need not rest');
    world.end();

    const filled = new World(spec('p', [{ kind: 'deltas', fill: 0.7 }]));
    t.equal(filled.look(), undefined);
    filled.facts = { deltaFill: 0.69 };
    t.equal(filled.look(), undefined);
    filled.facts = { deltaFill: 0.7 };
    t.match(filled.look(), { cause: 'deltas' });
  },
);

t.test(
  'one that fails is tried again after 1, 2, 4 ... minutes, at most an hour, until it is done',
  async (t) => {
    const world = new World(spec('p', [SIX_HOURS]));
    const tries = world.pass(START + 5 * HOUR, MINUTE, 'failed');
    t.strictSame(tries, [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]);
    t.equal(world.queue.stateOf('p', world.nowMs)?.failures, tries.length);
    world.restart();
    t.strictSame(world.pass(START + 12 * HOUR), [303, 303 + 6 * 60], 'a restart does not forget');
    t.equal(world.queue.stateOf('p', world.nowMs)?.failures, 0);
  },
);

t.test('one that was cancelled is left alone for an hour; its schedule counts all the same', async (t) => {
  const world = new World(spec('p', [SIX_HOURS]), spec('q', [{ ...HOURLY, pattern: '30 * * * *' }]));
  world.look();
  world.end('cancelled');
  t.strictSame(world.pass(START + 29 * MINUTE), []);
  t.match(world.pass(START + 30 * MINUTE, MINUTE, 'cancelled'), [30]);
  t.strictSame(world.pass(START + 90 * MINUTE), [60, 90]);
});

t.test('those that are due run in the order in which they became due, one at a time', async (t) => {
  const names = ['a', 'b', 'c'];
  const world = new World(...names.map((name) => spec(name, [SIX_HOURS])), spec('d', [HOURLY]));
  const order = [];
  for (; order.length < 3; world.nowMs += HOUR) {
    order.push(world.look()?.name);
    t.equal(world.look(), undefined, 'another one runs');
    t.equal(new Set(world.queue.waiting.map(({ name }) => name)).size, world.queue.waiting.length);
    world.end();
  }
  t.strictSame(order, names, 'at one instant as in the config, and d was due later');
  t.equal(world.look()?.name, 'd');
});

t.test('overdue is what has not begun within its grace', async (t) => {
  const world = new World(spec('p', [HOURLY], { graceMs: 2 * HOUR }), spec('q', [SIX_HOURS]));
  t.match(world.look(), { name: 'q' });
  world.nowMs = START + 3 * HOUR;
  world.queue.look(world.nowMs, () => ({}));
  t.match(world.queue.stateOf('p', world.nowMs), {
    state: 'waiting',
    isOverdue: false,
    beginByMs: START + 3 * HOUR,
  });
  t.match(world.queue.stateOf('p', world.nowMs + 1), { isOverdue: true });
  t.match(world.queue.stateOf('q', world.nowMs), { state: 'running', isOverdue: false });
  t.equal(world.queue.stateOf('none', world.nowMs), undefined);
});

t.test('new policies come, old ones go, changed ones go by what is new; what runs ends', async (t) => {
  const world = new World(spec('p', [HOURLY]), spec('gone', [SIX_HOURS]));
  t.match(world.look(), { name: 'gone' });
  world.nowMs = START + 90 * MINUTE;
  world.queue.look(world.nowMs, () => ({}));
  t.match(world.queue.waiting, [{ name: 'p' }]);
  const half: Condition = { ...HOURLY, pattern: '45 * * * *' };
  world.queue.setPolicies([spec('p', [half]), spec('new', [HOURLY])], () => undefined, world.nowMs);
  t.strictSame(world.queue.waiting, [], 'its new times have not come yet');
  t.equal(world.queue.running?.name, 'gone');
  t.equal(world.look(), undefined);
  world.end();
  t.strictSame(world.pass(START + 120 * MINUTE), [105, 120]);
  t.strictSame(
    world.begun.slice(-2).map(({ name }) => name),
    ['p', 'new'],
  );
  world.restart([spec('p', [half])]);
  world.nowMs += 59 * MINUTE;
  world.restart([spec('p', [HOURLY])]);
  t.equal(world.look(), undefined, 'also where the server was started anew between');
});

t.test(
  'a clock that is set back loses no time of a schedule and does not wait for the old time',
  async (t) => {
    const world = new World(spec('p', [HOURLY]), spec('q', [SIX_HOURS]));
    world.pass(START + 100 * HOUR);
    world.nowMs = START - 50 * HOUR;
    const minutes = world.pass(START - 43 * HOUR).map((minute) => minute + 50 * 60);
    t.strictSame(minutes, [60, 120, 180, 240, 300, 360, 360, 420]);
  },
);

/** One thing that happens in a random day. */
type Step =
  | { readonly kind: 'pass'; readonly ms: number }
  | { readonly kind: 'look' }
  | { readonly kind: 'end'; readonly state: RunState }
  | { readonly kind: 'restart' };

const stepOf: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.integer({ min: 1, max: 90 * MINUTE }).map((ms) => ({ kind: 'pass' as const, ms })),
  },
  { weight: 5, arbitrary: fc.constant({ kind: 'look' as const }) },
  {
    weight: 4,
    arbitrary: fc
      .constantFrom<RunState>('done', 'done', 'failed', 'cancelled', 'interrupted')
      .map((state) => ({ kind: 'end' as const, state })),
  },
  { weight: 1, arbitrary: fc.constant({ kind: 'restart' as const }) },
);

const specsOf = fc
  .array(
    fc.record({
      minute: fc.integer({ min: 0, max: 59 }),
      jitterMs: fc.integer({ min: 0, max: 40 * MINUTE }),
      everyMs: fc.option(fc.integer({ min: 10 * MINUTE, max: 8 * HOUR }), { nil: undefined }),
    }),
    { minLength: 1, maxLength: 4 },
  )
  .map((all) =>
    all.map(({ minute, jitterMs, everyMs }, index) => ({
      minute,
      policy: spec(
        `p${index}`,
        [
          { kind: 'schedule', pattern: `${minute} * * * *`, timeZone: 'UTC' },
          ...(everyMs === undefined ? [] : [{ kind: 'every', everyMs } as const]),
        ],
        { jitterMs },
      ),
    })),
  );

/** The last time at which an hour's minute came, up to `atMs`. */
function lastTime(minute: number, atMs: number): number {
  const inHour = Math.floor((atMs - minute * MINUTE) / HOUR) * HOUR;
  return inHour + minute * MINUTE;
}

t.test('days of a volume, whatever happens', async () => {
  fc.assert(
    fc.property(specsOf, fc.array(stepOf, { maxLength: 120 }), (all, steps) => {
      const world = new World(...all.map(({ policy }) => policy));
      let running: string | undefined;
      const look = (): void => {
        const due = world.look();
        if (due === undefined) return;
        if (running !== undefined) throw new Error(`${due.name} begins while ${running} runs`);
        running = due.name;
        const { minute, policy } = all[Number(due.name.slice(1))] ??
          all[0] ?? { minute: 0, policy: spec('', []) };
        if (due.dueMs > world.nowMs) throw new Error('begun before it was due');
        if (due.cause === 'schedule') {
          const lateMs = due.dueMs - lastTime(minute, due.dueMs);
          // Its own time is one of the last, since jitter is shorter than an hour.
          if (lateMs > policy.jitterMs) throw new Error(`${lateMs} ms late, ${policy.jitterMs} allowed`);
        }
      };
      for (const step of steps) {
        if (step.kind === 'pass') world.nowMs += step.ms;
        else if (step.kind === 'look') look();
        else if (step.kind === 'end' && running !== undefined) {
          world.end(step.state);
          running = undefined;
        } else if (step.kind === 'restart') {
          world.restart();
          running = undefined;
        }
        const names = world.queue.waiting.map(({ name }) => name);
        if (new Set(names).size < names.length || names.includes(running ?? ''))
          throw new Error('queued twice');
      }
      // Whatever was under way ends, then nothing is in the way for a moment: nothing that was due before is left.
      if (running !== undefined) world.end('done');
      running = undefined;
      const quietMs = world.nowMs;
      for (let waitMs = 0; waitMs <= HOUR; waitMs += MINUTE, world.nowMs += MINUTE) {
        for (look(); running !== undefined; look()) {
          world.end('done');
          running = undefined;
        }
      }
      for (const { minute, policy } of all) {
        const timeMs = lastTime(minute, quietMs);
        const begun = world.begun.filter(({ name }) => name === policy.name);
        if (timeMs > START && !begun.some(({ startedMs }) => startedMs >= timeMs)) {
          throw new Error(`${policy.name} was not begun after ${new Date(timeMs).toISOString()}`);
        }
        const scheduled = begun.filter(({ cause }) => cause === 'schedule');
        for (const [index, { startedMs, name }] of scheduled.entries()) {
          const before = scheduled[index - 1]?.startedMs ?? START;
          const isAgain = lastTime(minute, startedMs) <= before;
          // A run that was lost with its process is repeated, since nobody knows of it.
          if (isAgain && !steps.some(({ kind }) => kind === 'restart'))
            throw new Error(`${name} began twice`);
        }
      }
    }),
    { numRuns: 200 },
  );
});

t.test(
  'jitter is the same for one time, differs between times and names, and is spread over its bounds',
  async (t) => {
    const offsets = (name: string, seed: string): readonly number[] => {
      const queue = new PolicyQueue(seed);
      queue.setPolicies([spec(name, [HOURLY], { jitterMs: 30 * MINUTE })], () => undefined, START);
      return Array.from({ length: 200 }, () => {
        const dueMs = queue.nextLookMs() ?? 0;
        queue.look(dueMs, () => ({}));
        queue.begin(dueMs);
        queue.end({ startedMs: dueMs, endedMs: dueMs, state: 'done' });
        return (dueMs - START) % HOUR;
      });
    };
    const [one, again, other, elsewhere] = [
      offsets('p', 'a'),
      offsets('p', 'a'),
      offsets('q', 'a'),
      offsets('p', 'b'),
    ];
    t.strictSame(one, again);
    t.notSame(one, other);
    t.notSame(one, elsewhere);
    t.ok(one.every((offset) => offset >= 0 && offset <= 30 * MINUTE));
    t.ok(Math.min(...one) < 3 * MINUTE && Math.max(...one) > 27 * MINUTE);
  },
);
