/** Goal: the arguments of nbd-client are exactly these, and a shell reads them back. Method: golden lines. */

import t from 'tap';
import { parseNbdUri } from '../nbd/index.ts';
import { addressOfVolume, attachArguments, describeDeviceEvent, shellLine } from './attach.ts';

const TAIL = '-block-size 4096 -connections 1 -timeout 600 -persist';

t.test('a volume of this machine goes through its socket', (t) => {
  const words = attachArguments(addressOfVolume('/srv/vol'), '/dev/nbd0', 1);
  t.equal(shellLine(words), `-unix /srv/vol/nbd.sock /dev/nbd0 -name vol ${TAIL}`);
  t.end();
});

t.test('a URI goes where it says', (t) => {
  const remote = attachArguments(parseNbdUri('nbd://10.0.2.2/vol'), '/dev/nbd1', 4);
  t.equal(
    shellLine(remote),
    `10.0.2.2 10809 /dev/nbd1 -name vol ${TAIL.replace('connections 1', 'connections 4')}`,
  );
  const local = attachArguments(parseNbdUri('nbd+unix:///a%20b?socket=/s'), '/dev/nbd1', 1);
  t.equal(shellLine(local), `-unix /s /dev/nbd1 -name 'a b' ${TAIL}`);
  t.end();
});

t.test('a shell reads back what was printed', (t) => {
  t.equal(shellLine(['a', 'b c', "d'e", '$f', '']), `a 'b c' 'd'\\''e' '$f' ''`);
  t.end();
});

t.test('what happens to a device is one line', (t) => {
  const device = '/dev/nbd0';
  t.equal(describeDeviceEvent({ kind: 'lost', device }), '/dev/nbd0 has lost its server');
  const waiting = describeDeviceEvent({ kind: 'waiting', device, error: new Error('nobody there') });
  t.equal(waiting, '/dev/nbd0 waits for its server: nobody there');
  const restored = describeDeviceEvent({ kind: 'restored', device, pauseMs: 1234 });
  t.equal(restored, '/dev/nbd0 is connected again after 1.2 s');
  t.end();
});
