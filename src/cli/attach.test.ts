/** Goal: the arguments of nbd-client are exactly these, and a shell reads them back. Method: golden lines. */

import t from 'tap';
import { parseNbdUri } from '../nbd/index.ts';
import { addressOfVolume, attachArguments, detachArguments, shellLine } from './attach.ts';

const TAIL = '-block-size 4096 -connections 1 -timeout 600 -persist';

t.test('a volume of this machine goes through its socket', (t) => {
  const words = attachArguments(addressOfVolume('/srv/vol'), '/dev/nbd0');
  t.equal(shellLine(words), `-unix /srv/vol/nbd.sock /dev/nbd0 -name vol ${TAIL}`);
  t.end();
});

t.test('a URI goes where it says', (t) => {
  const remote = attachArguments(parseNbdUri('nbd://10.0.2.2/vol'), '/dev/nbd1');
  t.equal(shellLine(remote), `10.0.2.2 10809 /dev/nbd1 -name vol ${TAIL}`);
  const local = attachArguments(parseNbdUri('nbd+unix:///a%20b?socket=/s'), '/dev/nbd1');
  t.equal(shellLine(local), `-unix /s /dev/nbd1 -name 'a b' ${TAIL}`);
  t.end();
});

t.test('detaching', (t) => {
  t.strictSame(detachArguments('/dev/nbd0'), ['-d', '/dev/nbd0']);
  t.end();
});

t.test('a shell reads back what was printed', (t) => {
  t.equal(shellLine(['a', 'b c', "d'e", '$f', '']), `a 'b c' 'd'\\''e' '$f' ''`);
  t.end();
});
