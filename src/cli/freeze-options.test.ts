/** Goal: what is typed about hooks is read right, or refused with what would do. Method: tables. */

import t from 'tap';
import { type FreezeOptions, readFreezeHooks } from './freeze-options.ts';

function read(options: object) {
  const none: FreezeOptions = { preFreeze: undefined, postFreeze: undefined, hookTimeout: undefined };
  return readFreezeHooks({ ...none, ...options });
}

t.test('hooks, or none', (t) => {
  t.equal(read({}), undefined);
  t.strictSame(read({ preFreeze: 'a b' }), { pre: 'a b', timeoutMs: 30_000 });
  t.strictSame(read({ postFreeze: 'c', hookTimeout: '10m' }), { post: 'c', timeoutMs: 600_000 });
  t.strictSame(read({ preFreeze: 'a', postFreeze: 'c', hookTimeout: '1' }), {
    pre: 'a',
    post: 'c',
    timeoutMs: 1000,
  });
  t.end();
});

t.test('what cannot be', (t) => {
  const cases: [object, RegExp][] = [
    [{ preFreeze: ' ' }, /^--pre-freeze is empty, wanted a shell command$/],
    [{ postFreeze: '' }, /^--post-freeze is empty/],
    [{ preFreeze: ['a', 'b'] }, /^--pre-freeze is given 2 times/],
    [
      { postFreeze: 'x'.repeat(16_385) },
      /^--post-freeze has 16385 bytes, wanted at most 16384; put it into a/,
    ],
    [{ hookTimeout: '5s' }, /^--hook-timeout is given without a hook/],
    [{ preFreeze: 'a', hookTimeout: '0' }, /^--hook-timeout is '0', wanted from 1s to 10m/],
    [{ preFreeze: 'a', hookTimeout: ['1', '2'] }, /^--hook-timeout is given 2 times/],
  ];
  for (const [options, message] of cases) t.throws(() => read(options), { code: 'usage', message });
  t.end();
});
