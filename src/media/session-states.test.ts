/**
 * Goal: a session on media goes through the states of `EXAMPLES.md` B10 and through no others.
 *
 * Method: the walks that the example names, then every step from every state, allowed or refused.
 */

import t from 'tap';
import { LIMITS, ManualClock } from '../base/index.ts';
import { type SessionState, SessionStates, type TransferState } from './session-states.ts';

const STEPS = {
  beginMedium: (states: SessionStates) => states.beginMedium(states.medium + 1),
  transfer: (states: SessionStates) => states.transfer(),
  endMedium: (states: SessionStates) => states.endMedium(),
  fail: (states: SessionStates) => states.fail('The medium is torn'),
  closeMedium: (states: SessionStates) => states.closeMedium(),
} as const;
type Step = keyof typeof STEPS;
const STEP_NAMES: readonly Step[] = ['beginMedium', 'transfer', 'endMedium', 'fail', 'closeMedium'];

/** How a session gets into each state, and where each step leads from there. */
const walks = (
  transfer: TransferState,
): readonly [SessionState, readonly Step[], Partial<Record<Step, SessionState>>][] => [
  ['opened', [], { beginMedium: 'beginning-of-medium' }],
  ['beginning-of-medium', ['beginMedium'], { transfer }],
  [transfer, ['beginMedium', 'transfer'], { endMedium: 'end-of-medium', fail: 'error' }],
  ['end-of-medium', ['beginMedium', 'transfer', 'endMedium'], { closeMedium: 'opened' }],
  ['error', ['beginMedium', 'transfer', 'fail'], { closeMedium: 'opened' }],
];

for (const transfer of ['write', 'read'] as const) {
  t.test(`B10: every step of a session that is to ${transfer}`, (t) => {
    for (const [state, walk, allowed] of walks(transfer)) {
      for (const step of STEP_NAMES) {
        const states = new SessionStates(transfer, { clock: new ManualClock() });
        for (const each of walk) STEPS[each](states);
        t.equal(states.state, state);
        const before = states.steps.length;
        const wanted = allowed[step];
        if (wanted === undefined) {
          t.throws(
            () => STEPS[step](states),
            new RegExp(`A session in ${state} cannot go to`),
            `${step} from ${state}`,
          );
          t.equal(states.steps.length, before, 'a refused step leaves no trace');
        } else {
          STEPS[step](states);
          t.equal(states.state, wanted, `${step} from ${state}`);
        }
      }
    }
    t.end();
  });
}

t.test('steps are recorded with their times, media and reasons', (t) => {
  const clock = new ManualClock(1000);
  const seen: string[] = [];
  const states = new SessionStates('write', { clock, onStep: (step) => seen.push(step.state) });
  for (const medium of [1, 2]) {
    states.beginMedium(medium);
    clock.advance(5);
    states.transfer();
    if (medium === 1) states.endMedium();
    else states.fail('The medium is torn');
    states.closeMedium();
  }
  t.same(
    states.steps.map(({ state, medium, atMs, reason }) => [state, medium, atMs, reason ?? '']),
    [
      ['opened', 0, 1000, ''],
      ['beginning-of-medium', 1, 1000, ''],
      ['write', 1, 1005, ''],
      ['end-of-medium', 1, 1005, ''],
      ['opened', 1, 1005, ''],
      ['beginning-of-medium', 2, 1005, ''],
      ['write', 2, 1010, ''],
      ['error', 2, 1010, 'The medium is torn'],
      ['opened', 2, 1010, ''],
    ],
  );
  t.same(
    seen,
    states.steps.map(({ state }) => state),
  );
  t.end();
});

t.test('the record of steps is bounded', (t) => {
  const states = new SessionStates('read', { clock: new ManualClock() });
  const media = LIMITS.mediaStepCountMax;
  for (let medium = 1; medium <= media; medium += 1) {
    states.beginMedium(medium);
    states.transfer();
    states.endMedium();
    states.closeMedium();
  }
  t.equal(states.steps.length, LIMITS.mediaStepCountMax);
  t.equal(states.droppedCount, 1 + 4 * media - LIMITS.mediaStepCountMax);
  t.equal(states.medium, media);
  t.end();
});
