/**
 * Goal: the bytes of structured replies, extended headers and metadata contexts are the protocol's, and
 * whatever a peer sends decodes to a value or to nothing.
 * Method: golden bytes written out by hand from NBD proto.md and its branch `extension-ext-header`; round trips
 * and arbitrary bytes as properties.
 */

import { deepStrictEqual, ok } from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { COMMAND, COMMAND_FLAG, emptyRequest } from './codec.ts';
import {
  CHUNK,
  CHUNK_DONE,
  decodeBlockStatus,
  decodeChunkError,
  decodeExtendedChunk,
  decodeExtendedRequest,
  decodeHole,
  decodeStatusFilter,
  decodeStructuredChunk,
  encodeBlockStatus,
  encodeChunkError,
  encodeExtendedBlockStatus,
  encodeExtendedRequest,
  encodeHole,
  encodeStatusFilter,
  writeExtendedChunk,
  writeStructuredChunk,
} from './codec-chunks.ts';
import {
  decodeMetaContextEntry,
  decodeMetaContextRequest,
  encodeMetaContextEntry,
  encodeMetaContextRequest,
} from './codec-meta.ts';

const uint16 = fc.integer({ min: 0, max: 0xffff });
const uint32 = fc.nat(0xffff_ffff);
const safeInteger = fc.maxSafeNat();
const text = fc.string({ unit: 'binary', maxLength: 40 }).filter((value) => !value.includes('\0'));
const bytes = fc.uint8Array({ maxLength: 80 }).map((value) => Buffer.from(value));
const address = fc.record({
  cookieHigh: uint32,
  cookieLow: uint32,
  offsetHigh: fc.nat(0x1f_ffff),
  offsetLow: uint32,
});

function hex(strings: TemplateStringsArray): Buffer {
  return Buffer.from((strings[0] ?? '').replaceAll(/\s/g, ''), 'hex');
}

const to = { cookieHigh: 0x0102_0304, cookieLow: 0xf506_0708, offsetHigh: 0x100, offsetLow: 0x1000 };

t.test('golden bytes', (t) => {
  const request = {
    flags: COMMAND_FLAG.payloadLength,
    type: COMMAND.blockStatus,
    cookieHigh: 0x0102_0304,
    cookieLow: 0xf506_0708,
    offsetBytes: 2 ** 40 + 4096,
    lengthBytes: 2 ** 33,
  };
  t.same(
    encodeExtendedRequest(request),
    hex`21e41c71 0020 0007 01020304f5060708 0000010000001000 0000000200000000`,
  );
  const structured = Buffer.alloc(20);
  writeStructuredChunk(structured, 0, { flags: CHUNK_DONE, type: CHUNK.offsetData }, to, 520);
  t.same(structured, hex`668e33ef 0001 0001 01020304f5060708 00000208`);
  const extended = Buffer.alloc(32);
  writeExtendedChunk(extended, 0, { flags: 0, type: CHUNK.errorOffset }, to, 520);
  t.same(extended, hex`6e8a278c 0000 8002 01020304f5060708 0000010000001000 0000000000000208`);
  t.same(encodeHole({ offsetBytes: 2 ** 32, lengthBytes: 4096 }), hex`0000000100000000 00001000`);
  const failed = { error: 22, message: 'no', offsetBytes: undefined };
  t.same(encodeChunkError(failed), hex`00000016 0002 6e6f`);
  t.same(encodeChunkError({ ...failed, offsetBytes: 512 }), hex`00000016 0002 6e6f 0000000000000200`);
  const extents = [
    { lengthBytes: 4096, flags: 3 },
    { lengthBytes: 512, flags: 0 },
  ];
  t.same(encodeBlockStatus({ contextId: 7, extents }), hex`00000007 00001000 00000003 00000200 00000000`);
  t.same(
    encodeExtendedBlockStatus({ contextId: 7, extents }),
    hex`00000007 00000002 0000000000001000 0000000000000003 0000000000000200 0000000000000000`,
  );
  t.same(
    encodeStatusFilter({ lengthBytes: 2 ** 32, contextIds: [1, 2] }),
    hex`0000000100000000 00000001 00000002`,
  );
  t.same(
    encodeMetaContextRequest({ exportName: 'ab', queries: ['x:', 'x:y'] }),
    hex`00000002 6162 00000002 00000002 783a 00000003 783a79`,
  );
  t.same(encodeMetaContextEntry({ id: 9, name: 'x:y' }), hex`00000009 783a79`);
  t.end();
});

t.test('what was encoded decodes to the same', (t) => {
  fc.assert(
    fc.property(uint16, uint16, address, safeInteger, (flags, type, whom, lengthBytes) => {
      const { cookieHigh, cookieLow, offsetHigh, offsetLow } = whom;
      const offsetBytes = offsetHigh * 2 ** 32 + offsetLow;
      const request = { flags, type, cookieHigh, cookieLow, offsetBytes, lengthBytes };
      const decoded = emptyRequest();
      ok(decodeExtendedRequest(Buffer.concat([Buffer.alloc(3), encodeExtendedRequest(request)]), 3, decoded));
      deepStrictEqual(decoded, { ...request, offsetHigh, offsetLow });
    }),
  );
  fc.assert(
    fc.property(uint16, uint16, address, uint32, (flags, type, whom, payloadBytes) => {
      const buffer = Buffer.alloc(40);
      const { cookieHigh, cookieLow } = whom;
      writeStructuredChunk(buffer, 3, { flags, type }, whom, payloadBytes);
      const header = { flags, type, cookieHigh, cookieLow, payloadBytes };
      deepStrictEqual(decodeStructuredChunk(buffer, 3), { ...header, offsetBytes: undefined });
      writeExtendedChunk(buffer, 3, { flags, type }, whom, payloadBytes);
      const offsetBytes = whom.offsetHigh * 2 ** 32 + whom.offsetLow;
      deepStrictEqual(decodeExtendedChunk(buffer, 3), { ...header, offsetBytes });
    }),
  );
  fc.assert(
    fc.property(safeInteger, uint32, (offsetBytes, lengthBytes) => {
      deepStrictEqual(decodeHole(encodeHole({ offsetBytes, lengthBytes })), { offsetBytes, lengthBytes });
    }),
  );
  fc.assert(
    fc.property(uint32, text, fc.option(safeInteger, { nil: undefined }), (error, message, offsetBytes) => {
      const type = offsetBytes === undefined ? CHUNK.error : CHUNK.errorOffset;
      const said = { error, message, offsetBytes };
      deepStrictEqual(decodeChunkError(type, encodeChunkError(said)), said);
    }),
  );
  const extentsUpTo = (max: number): fc.Arbitrary<{ lengthBytes: number; flags: number }[]> => {
    const pair = fc.tuple(fc.integer({ min: 1, max }), uint32);
    return fc.array(
      pair.map(([lengthBytes, flags]) => ({ lengthBytes, flags })),
      { minLength: 1 },
    );
  };
  fc.assert(
    fc.property(uint32, extentsUpTo(2 ** 32 - 1), (contextId, extents) => {
      const status = { contextId, extents };
      deepStrictEqual(decodeBlockStatus(CHUNK.blockStatus, encodeBlockStatus(status)), status);
    }),
  );
  fc.assert(
    fc.property(uint32, extentsUpTo(Number.MAX_SAFE_INTEGER), (contextId, extents) => {
      const status = { contextId, extents };
      deepStrictEqual(
        decodeBlockStatus(CHUNK.blockStatusExtended, encodeExtendedBlockStatus(status)),
        status,
      );
    }),
  );
  fc.assert(
    fc.property(safeInteger, fc.array(uint32), (lengthBytes, contextIds) => {
      const filter = { lengthBytes, contextIds };
      deepStrictEqual(decodeStatusFilter(encodeStatusFilter(filter)), filter);
    }),
  );
  fc.assert(
    fc.property(text, fc.array(text), uint32, (name, queries, id) => {
      const request = { exportName: name, queries };
      deepStrictEqual(decodeMetaContextRequest(encodeMetaContextRequest(request)), request);
      deepStrictEqual(decodeMetaContextEntry(encodeMetaContextEntry({ id, name })), { id, name });
    }),
  );
  t.end();
});

t.test('long messages are cut between characters, and NUL does not end them', (t) => {
  const said = { error: 5, message: 'ä'.repeat(400), offsetBytes: undefined };
  t.equal(decodeChunkError(CHUNK.error, encodeChunkError(said))?.message, 'ä'.repeat(256));
  const odd = { ...said, message: `x${said.message}` };
  t.equal(decodeChunkError(CHUNK.error, encodeChunkError(odd))?.message, `x${'ä'.repeat(255)}`);
  t.equal(decodeChunkError(CHUNK.error, encodeChunkError({ ...said, message: 'a\0b' }))?.message, 'a b');
  t.end();
});

t.test('bytes that are no such message decode to nothing', (t) => {
  t.notOk(decodeExtendedRequest(Buffer.alloc(32), 0, emptyRequest()));
  t.equal(decodeStructuredChunk(Buffer.alloc(20), 0), undefined);
  t.equal(decodeExtendedChunk(Buffer.alloc(32), 0), undefined);
  t.equal(
    decodeChunkError(CHUNK.error, hex`00000016 0003 6e6f`),
    undefined,
    'a message longer than the payload',
  );
  t.equal(decodeChunkError(CHUNK.errorOffset, hex`00000016 0002 6e6f 00000000`), undefined, 'half an offset');
  t.same(decodeChunkError(CHUNK.error, hex`00000016 0001 ff`)?.message, '', 'no UTF-8 is no message');
  t.equal(decodeBlockStatus(CHUNK.blockStatus, hex`00000001`), undefined, 'no extent');
  t.equal(decodeBlockStatus(CHUNK.blockStatus, hex`00000001 00000200`), undefined, 'half an extent');
  t.equal(
    decodeBlockStatus(CHUNK.blockStatus, hex`00000001 00000000 00000000`),
    undefined,
    'an empty extent',
  );
  const extent = '0000000000000200 0000000000000000'.replaceAll(' ', '');
  const miscounted = Buffer.from(`0000000100000002${extent}`, 'hex');
  t.equal(decodeBlockStatus(CHUNK.blockStatusExtended, miscounted), undefined, 'a wrong count');
  t.equal(decodeStatusFilter(hex`00000000 000002`), undefined);
  t.equal(decodeMetaContextRequest(hex`00000002 6162`), undefined, 'no count');
  t.equal(decodeMetaContextRequest(hex`00000000 ffffffff`), undefined, 'a count without queries');
  t.equal(decodeMetaContextRequest(hex`00000000 00000001 00000003 783a`), undefined, 'a query cut short');
  t.equal(decodeMetaContextRequest(hex`00000000 00000000 00`), undefined, 'something behind');
  t.equal(decodeMetaContextRequest(hex`00000001 ff 00000000`), undefined, 'no UTF-8');
  fc.assert(
    fc.property(bytes, uint16, (data, type) => {
      decodeMetaContextRequest(data);
      decodeMetaContextEntry(data);
      decodeStatusFilter(data);
      decodeBlockStatus(CHUNK.blockStatus, data);
      decodeBlockStatus(CHUNK.blockStatusExtended, data);
      decodeChunkError(type, data);
    }),
  );
  t.end();
});
