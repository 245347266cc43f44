/**
 * Goal: an error ends with the same status wherever it was raised, and is one line.
 *
 * Method: a table of errors of each kind, some as they come back from the serving process.
 */

import t from 'tap';
import { AssertionError, CorruptionError } from '../base/index.ts';
import { StoreError } from '../blockset/index.ts';
import { DaemonError, RemoteError } from '../daemon/index.ts';
import { errorLine, EXIT, exitStatusOf, InterruptedError, UsageError } from './exit.ts';

t.test('each kind of error has its exit status', (t) => {
  const ambiguous = { selector: 'x', candidates: ['A', 'B'] };
  const cases: [unknown, number][] = [
    [new UsageError('wrong'), 2],
    [new StoreError('ambiguous-set', 'x may be A, B', ambiguous), 2],
    [new StoreError('unknown-set', 'no x', ambiguous), 1],
    [new DaemonError('duplicate-name', 'twice', { name: 'v', directories: [] }), 2],
    [new DaemonError('cancelled', 'gone', { volume: 'v', session: 's' }), 1],
    [new RemoteError('ambiguous-set', 'from the server'), 2],
    [new RemoteError('in-use', 'from the server'), 1],
    [new CorruptionError('damaged', { where: 'set' }), 3],
    [new InterruptedError(), 1],
    [new AssertionError('impossible'), 1],
    [Object.assign(new Error('no such file'), { code: 'ENOENT' }), 1],
    ['text', 1],
  ];
  for (const [error, status] of cases) t.equal(exitStatusOf(error), status, String(error));
  t.strictSame(EXIT, { done: 0, operatingError: 1, usageError: 2, corruption: 3 });
  t.end();
});

t.test('an error is one line', (t) => {
  t.equal(errorLine(new Error('first\n  second\r\nthird')), 'cowbell: first; second; third');
  t.match(errorLine(new AssertionError('impossible')), /^cowbell: impossible \(a defect in cowbell/);
  t.end();
});
