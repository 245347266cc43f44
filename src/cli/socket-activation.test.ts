/**
 * Goal: exactly the sockets that are meant for this process are taken, once, and its children are told of
 * none. Method: environments as sd_listen_fds(3) describes them; real sockets are a native test's.
 */

import t from 'tap';
import { takeHandedSockets } from './socket-activation.ts';

function listener(descriptor: number, exports?: readonly string[]) {
  return { place: { kind: 'descriptor', descriptor }, exports };
}

t.test('the sockets of this process are taken once', (t) => {
  const environment = {
    LISTEN_PID: '77',
    LISTEN_FDS: '2',
    LISTEN_FDNAMES: 'x:y',
    LISTEN_PIDFDID: '1',
    HOME: '/',
  };
  t.strictSame(takeHandedSockets(environment, 77), [listener(3), listener(4)]);
  t.strictSame(environment, { HOME: '/' });
  t.strictSame(takeHandedSockets(environment, 77), []);
  t.end();
});

t.test('names may restrict a socket to exports', (t) => {
  const take = (names: string | undefined) =>
    takeHandedSockets({ LISTEN_PID: '1', LISTEN_FDS: '3', LISTEN_FDNAMES: names }, 1);
  t.strictSame(take('nbd=a,b:cowbell.socket:=c'), [listener(3, ['a', 'b']), listener(4), listener(5, ['c'])]);
  t.strictSame(take('x=*'), [listener(3), listener(4), listener(5)], 'fewer names than sockets');
  t.strictSame(take(undefined), [listener(3), listener(4), listener(5)]);
  t.throws(() => take('nbd='), { code: 'usage', message: /LISTEN_FDNAMES is 'nbd='/ });
  t.end();
});

t.test('sockets of another process are left alone, and not named to children', (t) => {
  for (const given of [{ LISTEN_PID: '78' }, { LISTEN_PID: '' }, { LISTEN_PID: '077' }, {}]) {
    const environment = { ...given, LISTEN_FDS: '1' };
    t.strictSame(takeHandedSockets(environment, 77), []);
    t.strictSame(environment, {});
  }
  t.strictSame(takeHandedSockets({ LISTEN_PID: '77' }, 77), []);
  t.strictSame(takeHandedSockets({ LISTEN_PID: '77', LISTEN_FDS: '0' }, 77), []);
  t.end();
});

t.test('a count that is none is refused', (t) => {
  for (const count of ['', '-1', '1.5', 'x', '1025', '99999999999']) {
    const take = () => takeHandedSockets({ LISTEN_PID: '77', LISTEN_FDS: count }, 77);
    t.throws(take, { code: 'usage', message: `LISTEN_FDS is '${count}', wanted a count` }, count);
  }
  t.end();
});
