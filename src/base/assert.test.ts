import t from 'tap';
import { assert, AssertionError, present } from './assert.ts';

t.test('assert passes a true condition and throws on a false one', (t) => {
  assert(true, 'never shown');
  t.throws(() => assert(false, 'the reason'), AssertionError);
  t.equal(present(0, 'zero is present'), 0);
  t.throws(() => present(undefined, 'missing'), AssertionError);
  t.end();
});
