/**
 * Goal: the bytes on the wire are the protocol's, and whatever a peer sends decodes to a value or to nothing.
 * Method: golden bytes written out by hand from NBD proto.md; round trips and arbitrary bytes as properties.
 */

import { deepStrictEqual, strictEqual as equal, ok } from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import {
  COMMAND,
  COMMAND_FLAG,
  decodeExportNameReply,
  decodeGreeting,
  decodeInfoReply,
  decodeInfoRequest,
  decodeOptionHeader,
  decodeOptionReplyHeader,
  decodeRequest,
  decodeServerEntry,
  decodeSimpleReply,
  decodeString,
  emptyRequest,
  encodeClientFlags,
  encodeExportNameReply,
  encodeGreeting,
  encodeInfoReply,
  encodeInfoRequest,
  encodeOption,
  encodeOptionReply,
  encodeRequest,
  encodeServerEntry,
  INFO,
  OPTION,
  OPTION_REPLY,
  readUint64,
  writeSimpleReply,
  writeUint64,
} from './codec.ts';

const uint16 = fc.integer({ min: 0, max: 0xffff });
const uint32 = fc.nat(0xffff_ffff);
const safeInteger = fc.maxSafeNat();
const text = fc.string({ unit: 'binary', maxLength: 40 }).filter((value) => !value.includes('\0'));
const bytes = fc.uint8Array({ maxLength: 80 }).map((value) => Buffer.from(value));

function hex(strings: TemplateStringsArray): Buffer {
  return Buffer.from((strings[0] ?? '').replaceAll(/\s/g, ''), 'hex');
}

t.test('golden bytes of the handshake', (t) => {
  t.same(encodeGreeting(3), hex`4e42444d41474943 49484156454f5054 0003`);
  t.same(encodeClientFlags(3), hex`00000003`);
  t.same(encodeOption(OPTION.list, Buffer.alloc(0)), hex`49484156454f5054 00000003 00000000`);
  t.same(
    encodeOption(
      OPTION.go,
      encodeInfoRequest({ name: Buffer.from('ab'), infos: [INFO.name, INFO.blockSize] }),
    ),
    hex`49484156454f5054 00000007 0000000c 00000002 6162 0002 0001 0003`,
  );
  t.same(
    encodeOptionReply(OPTION.info, OPTION_REPLY.errorUnsupported, Buffer.from('no')),
    hex`0003e889045565a9 00000006 80000001 00000002 6e6f`,
  );
  t.same(
    encodeInfoReply({ kind: 'export', sizeBytes: 2 ** 32 + 512, transmissionFlags: 0x16d }),
    hex`0000 0000000100000200 016d`,
  );
  t.same(encodeInfoReply({ kind: 'name', text: 'ab' }), hex`0001 6162`);
  t.same(encodeInfoReply({ kind: 'description', text: 'ab' }), hex`0002 6162`);
  t.same(
    encodeInfoReply({
      kind: 'block-size',
      minimumBytes: 512,
      preferredBytes: 4096,
      maximumPayloadBytes: 2 ** 25,
    }),
    hex`0003 00000200 00001000 02000000`,
  );
  t.same(encodeServerEntry({ name: 'ab', description: 'cd' }), hex`00000002 6162 6364`);
  t.same(encodeExportNameReply({ sizeBytes: 512, transmissionFlags: 3 }, false), hex`0000000000000200 0003`);
  t.equal(encodeExportNameReply({ sizeBytes: 512, transmissionFlags: 3 }, true).length, 134);
  t.end();
});

t.test('golden bytes of the transmission', (t) => {
  const request = {
    flags: COMMAND_FLAG.fua,
    type: COMMAND.write,
    cookieHigh: 0x0102_0304,
    cookieLow: 0xf506_0708,
    offsetBytes: 2 ** 40 + 4096,
    lengthBytes: 512,
  };
  t.same(encodeRequest(request), hex`25609513 0001 0001 01020304f5060708 0000010000001000 00000200`);
  const reply = Buffer.alloc(16);
  writeSimpleReply(reply, 0, 28, { cookieHigh: 0x0102_0304, cookieLow: 0xf506_0708 });
  t.same(reply, hex`67446698 0000001c 01020304f5060708`);
  t.end();
});

t.test('what was encoded decodes to the same', (t) => {
  fc.assert(
    fc.property(safeInteger, (value) => {
      const buffer = Buffer.alloc(8);
      writeUint64(buffer, value, 0);
      equal(BigInt(readUint64(buffer, 0)), buffer.readBigUInt64BE(0));
    }),
  );
  fc.assert(
    fc.property(uint16, uint16, uint32, uint32, safeInteger, uint32, (...values) => {
      const [flags, type, cookieHigh, cookieLow, offsetBytes, lengthBytes] = values;
      const request = { flags, type, cookieHigh, cookieLow, offsetBytes, lengthBytes };
      const decoded = emptyRequest();
      ok(decodeRequest(Buffer.concat([Buffer.alloc(3), encodeRequest(request)]), 3, decoded));
      const [offsetHigh, offsetLow] = [Math.floor(offsetBytes / 2 ** 32), offsetBytes % 2 ** 32];
      deepStrictEqual(decoded, { ...request, offsetHigh, offsetLow });
    }),
  );
  fc.assert(
    fc.property(uint32, uint32, uint32, (error, cookieHigh, cookieLow) => {
      const buffer = Buffer.alloc(20);
      writeSimpleReply(buffer, 4, error, { cookieHigh, cookieLow });
      deepStrictEqual(decodeSimpleReply(buffer, 4), { error, cookieHigh, cookieLow });
    }),
  );
  fc.assert(
    fc.property(uint32, uint32, bytes, (option, type, data) => {
      deepStrictEqual(decodeOptionHeader(encodeOption(option, data)), { option, lengthBytes: data.length });
      const reply = encodeOptionReply(option, type, data);
      deepStrictEqual(decodeOptionReplyHeader(reply), { option, type, lengthBytes: data.length });
    }),
  );
  fc.assert(
    fc.property(bytes, fc.array(uint16), (name, infos) => {
      deepStrictEqual(decodeInfoRequest(encodeInfoRequest({ name, infos })), { name, infos });
    }),
  );
  fc.assert(
    fc.property(text, text, (name, description) => {
      deepStrictEqual(decodeServerEntry(encodeServerEntry({ name, description })), { name, description });
      deepStrictEqual(decodeInfoReply(encodeInfoReply({ kind: 'name', text: name })), {
        kind: 'name',
        text: name,
      });
    }),
  );
  fc.assert(
    fc.property(safeInteger, uint16, fc.boolean(), (sizeBytes, transmissionFlags, zeroes) => {
      const basics = { sizeBytes, transmissionFlags };
      deepStrictEqual(decodeExportNameReply(encodeExportNameReply(basics, zeroes)), basics);
      deepStrictEqual(decodeInfoReply(encodeInfoReply({ kind: 'export', ...basics })), {
        kind: 'export',
        ...basics,
      });
    }),
  );
  t.equal(decodeGreeting(encodeGreeting(2)), 2);
  t.end();
});

t.test('offsets beyond the safe integers are infinite, so that no range check passes', (t) => {
  t.equal(readUint64(hex`001fffffffffffff`, 0), Number.MAX_SAFE_INTEGER);
  t.equal(readUint64(hex`0020000000000000`, 0), Number.POSITIVE_INFINITY);
  t.equal(readUint64(hex`ffffffffffffffff`, 0), Number.POSITIVE_INFINITY);
  t.throws(() => writeUint64(Buffer.alloc(8), -1, 0));
  t.throws(() => writeUint64(Buffer.alloc(8), 0.5, 0));
  t.throws(() => encodeRequest({ ...emptyRequest(), lengthBytes: 2 ** 32 }));
  t.end();
});

t.test('bytes that are no such message decode to nothing', (t) => {
  t.equal(decodeGreeting(hex`4e42444d41474943 00420281861253aa 0003`), undefined, 'oldstyle');
  t.equal(decodeOptionHeader(Buffer.alloc(16)), undefined);
  t.equal(decodeOptionReplyHeader(Buffer.alloc(20)), undefined);
  t.equal(decodeSimpleReply(Buffer.alloc(16), 0), undefined);
  t.notOk(decodeRequest(Buffer.alloc(28), 0, emptyRequest()));
  t.equal(decodeInfoRequest(hex`0000000a 6162 0000`), undefined, 'a name longer than the data');
  t.equal(decodeInfoRequest(hex`00000000 0002 0001`), undefined, 'fewer requests than said');
  t.equal(decodeInfoReply(hex`0000 00`), undefined);
  t.equal(decodeInfoReply(hex`0003 00`), undefined);
  t.same(decodeInfoReply(hex`0009 00`), { kind: 'other', type: 9 });
  t.equal(decodeServerEntry(hex`00000002 61`), undefined);
  t.equal(decodeString(hex`6100`), undefined, 'NUL');
  t.equal(decodeString(hex`c328`), undefined, 'no UTF-8');
  fc.assert(
    fc.property(bytes, (data) => {
      decodeInfoRequest(data);
      decodeInfoReply(data);
      decodeServerEntry(data);
      decodeString(data);
    }),
  );
  t.end();
});
