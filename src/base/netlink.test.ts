/**
 * Goal: requests are the bytes the kernel expects, what it answers is read back, and what is malformed is
 * refused instead of read past its end.
 *
 * Method: golden bytes worked out by hand from linux/netlink.h; any attributes there and back; and the kernel's
 * own controller, which every Linux has, for the socket. The nbd family is tested in the virtual machine.
 */

import fc from 'fast-check';
import t from 'tap';
import {
  decodeAttributes,
  encodeAttributes,
  encodeRequest,
  findAttribute,
  forcePlainNode,
  GenericNetlink,
  pollDescriptors,
} from './index.ts';

t.test('golden bytes of every kind of value', (t) => {
  const hex = (attributes: Parameters<typeof encodeAttributes>[0]): string =>
    encodeAttributes(attributes).toString('hex');
  t.equal(hex([[1, { u8: 0xab }]]), '05000100ab000000', 'padded to 4 bytes, the length is the true one');
  t.equal(hex([[2, { u16: 0x1234 }]]), '0600020034120000');
  t.equal(hex([[1, { u32: 7 }]]), '0800010007000000');
  t.equal(hex([[2, { u64: 0x0102030405060708n }]]), '0c0002000807060504030201');
  t.equal(hex([[10, { text: 'nbd' }]]), '08000a006e626400', 'closed by a zero');
  const sockets = hex([[7, { nested: [[1, { nested: [[1, { u32: 9 }]] }]] }]]);
  t.equal(sockets, '100007800c0001800800010009000000', 'nests carry the flag');
  t.end();
});

t.test('a request is headers and attributes', (t) => {
  const bytes = encodeRequest({
    family: 0x1c,
    command: 2,
    version: 1,
    sequence: 5,
    attributes: [[1, { u32: 0 }]],
  });
  t.equal(bytes.toString('hex'), '1c0000001c0005000500000000000000020100000800010000000000');
  t.end();
});

t.test('attributes come back', (t) => {
  const seed = Date.now() | 0;
  t.comment(`seed ${seed}`);
  const values = fc.array(fc.tuple(fc.integer({ min: 1, max: 0x3fff }), fc.string()));
  fc.assert(
    fc.property(values, (pairs) => {
      const decoded = decodeAttributes(encodeAttributes(pairs.map(([type, text]) => [type, { text }])));
      const texts = decoded?.map(({ type, value }) => [type, value.toString('utf8', 0, value.length - 1)]);
      t.strictSame(texts, pairs);
    }),
    { seed, numRuns: 50 },
  );
  t.end();
});

t.test('malformed attributes are refused', (t) => {
  for (const hex of ['0400', '03000100', '09000100ab000000', '0500010']) {
    t.equal(decodeAttributes(Buffer.from(hex, 'hex')), undefined, hex);
  }
  t.equal(findAttribute(undefined, 1), undefined);
  t.end();
});

t.test('the kernel answers', async (t) => {
  const netlink = GenericNetlink.open();
  t.teardown(() => netlink.close());
  const { id, groups } = await netlink.family('nlctrl');
  t.equal(id, 16, 'the controller has a fixed number');
  const group = groups.get('notify');
  if (group === undefined) throw new Error('the controller announces families');
  netlink.join(group);
  t.strictSame(netlink.announcements(), []);
  t.strictSame(await pollDescriptors([{ descriptor: netlink.descriptor, events: 1 }], 0), [0]);
  await t.rejects(netlink.family('no-such-family'), { code: 'ENOENT', syscall: 'netlink' });
  await t.rejects(netlink.request(16, 99, 1, []), { code: 'ENOTSUP' });
});

t.test('without koffi it says so', (t) => {
  forcePlainNode(true);
  t.teardown(() => forcePlainNode(false));
  t.throws(() => GenericNetlink.open(), { code: 'ENOSYS', message: /koffi/ });
  t.end();
});
