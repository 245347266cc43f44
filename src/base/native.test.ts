/** Goal: what concerns all native calls. The calls themselves are tested with their files. */

import t from 'tap';
import { threadPoolSize } from './native.ts';

t.test('the size of the thread pool is known', (t) => {
  t.ok(threadPoolSize() >= 1);
  t.end();
});
