/**
 * Goal: every error of a device reaches the client as one of the protocol's values, and none silently as EIO.
 * Method: the table by example.
 */

import t from 'tap';
import { nbdErrorName, nbdErrorOf, nbdErrorOfCode } from './errno.ts';

t.test('codes of the system and of block errors have their values', (t) => {
  const cases: [string, number][] = [
    ['EPERM', 1],
    ['EROFS', 1],
    ['read-only', 1],
    ['EIO', 5],
    ['poisoned', 5],
    ['ENOMEM', 12],
    ['EINVAL', 22],
    ['EOPNOTSUPP', 22],
    ['ENOSPC', 28],
    ['EDQUOT', 28],
    ['EFBIG', 28],
    ['no-space', 28],
    ['ESHUTDOWN', 108],
  ];
  for (const [code, value] of cases) {
    t.equal(nbdErrorOfCode(code), value, code);
    t.equal(
      nbdErrorOf(Object.assign(new Error('x'), { code }), () => t.fail('mapped')),
      value,
    );
  }
  t.end();
});

t.test('anything else is EIO and is reported', (t) => {
  for (const error of [new Error('x'), Object.assign(new Error('x'), { code: 'EWHAT' }), 'text', undefined]) {
    const reported: unknown[] = [];
    t.equal(
      nbdErrorOf(error, (unmapped) => reported.push(unmapped)),
      5,
    );
    t.same(reported, [error]);
  }
  t.end();
});

t.test('values have names, and unlisted ones count as EINVAL', (t) => {
  t.equal(nbdErrorName(28), 'ENOSPC');
  t.equal(nbdErrorName(108), 'ESHUTDOWN');
  t.equal(nbdErrorName(4711), 'EINVAL');
  t.end();
});
