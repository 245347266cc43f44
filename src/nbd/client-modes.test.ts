/**
 * Goal: client and server of this room understand each other whatever they agreed on, and the client takes
 * servers that have less.
 *
 * Method: a real server on a temporary socket, the client with every combination of wishes; servers that
 * refuse wishes are plain sockets around the same server's handshake, with options answered by the test.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { NbdClient, type NbdConnectOptions } from './client.ts';
import { ClientHandshake, type ClientDecision } from './client-handshake.ts';
import { encodeGreeting, encodeInfoReply, encodeOptionReply, OPTION, OPTION_REPLY } from './codec.ts';
import { encodeMetaContextEntry } from './codec-meta.ts';
import { NbdDevice, openNbdDevice } from './device.ts';
import type { Export } from './export.ts';
import type { MetaContext } from './meta-context.ts';
import { NbdServer } from './server.ts';
import { TestDevice } from './test-device.ts';
import { contextOf } from './test-transmission.ts';
import type { NbdAddress } from './uri.ts';

async function serve(t: Test, more: Partial<Export> & Pick<Export, 'device'>): Promise<NbdAddress> {
  const directory = mkdtempSync(join(tmpdir(), 'nbd-'));
  const exported = { name: 'disk', description: '', readOnly: false, multiConn: true, ...more };
  const server = new NbdServer({ exports: [exported] });
  const transport = await server.listen({ kind: 'unix', path: join(directory, 'nbd.sock') });
  t.teardown(async () => {
    await server.close();
    rmSync(directory, { recursive: true, force: true });
  });
  return { transport, exportName: 'disk' };
}

async function connect(t: Test, target: NbdAddress, options: NbdConnectOptions): Promise<NbdClient> {
  const client = await NbdClient.connect(target, options);
  t.teardown(() => client.disconnect());
  return client;
}

const modes: [NbdConnectOptions, string][] = [
  [{ structuredReplies: false, extendedHeaders: false }, 'simple'],
  [{ structuredReplies: true, extendedHeaders: false }, 'structured'],
  [{ structuredReplies: false, extendedHeaders: true }, 'extended'],
  [{}, 'extended'],
];

/** Says 1 of the first half, 0 of the second. */
const half: MetaContext = {
  name: 'x-test:half',
  extents: (offsetBytes, lengthBytes) => {
    const left = Math.max(0, 2 ** 19 - offsetBytes);
    const first = left > 0 ? [{ lengthBytes: Math.min(left, lengthBytes), flags: 1 }] : [];
    return Promise.resolve(
      lengthBytes > left ? [...first, { lengthBytes: lengthBytes - left, flags: 0 }] : first,
    );
  },
};

t.test('every command in every mode', async (t) => {
  for (const [wishes, mode] of modes) {
    const device = new TestDevice({ extents: true });
    const address = await serve(t, { device });
    const client = await connect(t, address, wishes);
    t.equal(client.replies, mode);
    const content = Buffer.alloc(8192, 'cowbell');
    await client.write(content, 4096, { fua: true });
    const back = Buffer.alloc(8192);
    await client.read(back, 4096);
    t.ok(back.equals(content), `${mode}: reads what was written`);
    await client.read(Buffer.alloc(0), 0);
    await client.writeZeroes(4096, 512, { fast: true });
    await client.trim(8192, 512);
    await client.cache(0, 4096);
    await client.flush();
    await t.rejects(client.writeZeroes(0, 512, { fast: true, mayTrim: false }), { code: 'not-supported' });
    const said = mode === 'simple' ? '' : 'Range 1048576+512 is not inside the export of 1048576 bytes';
    await t.rejects(client.read(Buffer.alloc(512), 2 ** 20), {
      code: 'invalid-request',
      details: { serverMessage: said, ...(mode === 'simple' ? {} : { offsetBytes: 2 ** 20 }) },
    });
    await client.read(back, 4096);
    t.ok(back.equals(Buffer.from(content).fill(0, 0, 512).fill(0, 4096, 4608)), `${mode}: goes on`);
    t.same(device.calls, [
      'write 4096+8192 fua',
      'read 4096+8192',
      'zeroes 4096+512',
      'trim 8192+512',
      'read 0+4096',
      'flush 0+0',
      'read 4096+8192',
    ]);
  }
});

t.test('contexts: selected, all or some of them asked, one extent or many', async (t) => {
  const device = new TestDevice({ extents: true });
  device.bytes.fill(1, 0, 4096);
  const found = contextOf('x-test:found', 5);
  const address = await serve(t, {
    device,
    contexts: [half],
    findContext: (name) => (name === found.name ? found : undefined),
  });
  const contexts = ['base:allocation', 'x-test:half', 'x-test:found', 'x-test:missing', 'base:'];
  for (const [wishes, mode] of modes) {
    const client = await connect(t, address, { ...wishes, contexts });
    if (mode === 'simple') {
      t.same(client.contexts, []);
      continue;
    }
    t.same(client.contexts, contexts.slice(0, 3));
    const all = await client.blockStatus(2048, 2 ** 20 - 2048);
    t.same(
      [...all],
      [
        [
          'base:allocation',
          [
            { lengthBytes: 2048, flags: 0 },
            { lengthBytes: 2 ** 20 - 4096, flags: 3 },
          ],
        ],
        [
          'x-test:half',
          [
            { lengthBytes: 2 ** 19 - 2048, flags: 1 },
            { lengthBytes: 2 ** 19, flags: 0 },
          ],
        ],
        ['x-test:found', [{ lengthBytes: 2 ** 20 - 2048, flags: 5 }]],
      ],
      mode,
    );
    const calls = device.calls.length;
    const some = await client.blockStatus(0, 4096, { contexts: ['x-test:half'] });
    t.same([...some], [['x-test:half', [{ lengthBytes: 4096, flags: 1 }]]]);
    const isFiltered = mode === 'extended';
    t.equal(device.calls.length - calls, isFiltered ? 0 : 1, 'with extended headers others are not asked');
    const one = await client.blockStatus(0, 8192, { requestOne: true });
    t.same(one.get('base:allocation'), [{ lengthBytes: 4096, flags: 0 }]);
    await t.rejects(client.blockStatus(2 ** 20, 512), { code: 'invalid-request' });
  }
});

t.test('large reads of sparse exports come back whole', async (t) => {
  const device = new TestDevice({ sizeBytes: 6 * 2 ** 20, extents: true });
  device.bytes.fill(1, 2 ** 20 - 512, 2 ** 20 + 512).fill(2, 4 * 2 ** 20, 5 * 2 ** 20);
  const address = await serve(t, { device });
  for (const [wishes, mode] of modes) {
    const client = await connect(t, address, wishes);
    const back = Buffer.alloc(device.sizeBytes, 9);
    device.calls.length = 0;
    await client.read(back, 0);
    t.ok(back.equals(device.bytes), mode);
    t.equal(device.calls.length, mode === 'simple' ? 1 : 3, 'only data is read where the client can be told');
  }
});

t.test('lengths beyond 4 GiB', async (t) => {
  const calls: string[] = [];
  const device = new TestDevice();
  const sizeBytes = 2 ** 45;
  Object.defineProperty(device, 'sizeBytes', { value: sizeBytes });
  device.trim = (offsetBytes, lengthBytes) => void calls.push(`trim ${offsetBytes}+${lengthBytes}`);
  const address = await serve(t, { device, contexts: [contextOf('x-test:vast', 1)] });
  const client = await connect(t, address, { contexts: ['x-test:vast'] });
  await client.trim(2 ** 40, 2 ** 44);
  t.same(calls, [`trim ${2 ** 40}+${2 ** 44}`]);
  const status = await client.blockStatus(0, sizeBytes);
  t.same(status.get('x-test:vast'), [{ lengthBytes: sizeBytes, flags: 1 }]);
  t.equal(client.rangeBytesMax, Number.MAX_SAFE_INTEGER);
  const compact = await connect(t, address, { extendedHeaders: false });
  t.equal(compact.rangeBytesMax, 2 ** 32 - 1);
});

t.test('the extents of a device', async (t) => {
  const behind = new TestDevice({ extents: true });
  behind.bytes.fill(1, 8192, 12_288);
  const address = await serve(t, { device: behind });
  const extent = (offsetBytes: number, lengthBytes: number, hole: boolean): unknown => ({
    offsetBytes,
    lengthBytes,
    hole,
    zero: hole,
  });
  for (const [wishes, mode] of modes) {
    const device = await openNbdDevice(address, wishes);
    t.equal(device.capabilities.extents, mode !== 'simple');
    const extents = await device.extents(4096, 12_288);
    if (mode === 'simple') t.same(extents, [extent(4096, 12_288, false)]);
    else t.same(extents, [extent(4096, 4096, true), extent(8192, 4096, false), extent(12_288, 4096, true)]);
    await device.close();
  }
});

t.test('extents within blocks, short answers and none at all still make whole blocks', async (t) => {
  const address = await serve(t, { device: new TestDevice() });
  const client = await connect(t, address, { contexts: ['base:allocation'] });
  const answers: Record<string, number[][][]> = {
    'a hole with edges inside of blocks': [
      [
        [100, 0],
        [1900, 3],
        [48, 0],
      ],
    ],
    'a byte at a time': [[[1, 3]], [[1, 3]], [[1, 3]], [[1, 3]]],
    'one block after the other': [[[512, 3]], [[512, 3]], [[512, 3]], [[512, 0]]],
    'more than asked for': [[[8192, 3]]],
    nothing: [[], [], [], []],
  };
  const expected: Record<string, (number | boolean)[][]> = {
    'a hole with edges inside of blocks': [
      [0, 512, false],
      [512, 1024, true],
      [1536, 512, false],
    ],
    'a byte at a time': [[0, 2048, false]],
    'one block after the other': [
      [0, 1536, true],
      [1536, 512, false],
    ],
    'more than asked for': [[0, 2048, true]],
    nothing: [[0, 2048, false]],
  };
  for (const [name, replies] of Object.entries(answers)) {
    const queue = [...replies];
    client.blockStatus = async () => {
      const extents = (queue.shift() ?? []).map(([lengthBytes = 0, flags = 0]) => ({ lengthBytes, flags }));
      return Promise.resolve(new Map([['base:allocation', extents]]));
    };
    const device = new NbdDevice(client);
    const extents = await device.extents(0, 2048);
    t.same(
      extents.map((found) => [found.offsetBytes, found.lengthBytes, found.zero]),
      expected[name],
      name,
    );
  }
});

/** A dialogue with a server that answers each option as told. */
function negotiate(
  answers: Readonly<Record<number, readonly Buffer[]>>,
  wishes = { structuredReplies: true, extendedHeaders: true, contexts: ['x-test:one', 'x-test:two'] },
): ClientDecision {
  const handshake = new ClientHandshake({ kind: 'go', exportName: 'disk' }, wishes);
  let { output, decision } = handshake.receive(encodeGreeting(3));
  let at = 4;
  while (decision.kind === 'continue' && output.length > at) {
    const option = output.readUInt32BE(at + 8);
    const replies = answers[option] ?? [encodeOptionReply(option, OPTION_REPLY.errorUnsupported, none)];
    ({ output, decision } = handshake.receive(Buffer.concat(replies)));
    at = 0;
  }
  return decision;
}

const none = Buffer.alloc(0);
const info = encodeInfoReply({ kind: 'export', sizeBytes: 2 ** 20, transmissionFlags: 1 });
const ack = (option: number): Buffer => encodeOptionReply(option, OPTION_REPLY.ack, none);
const refusal = (option: number, type: number): Buffer => encodeOptionReply(option, type, none);
const go = [encodeOptionReply(OPTION.go, OPTION_REPLY.info, info), ack(OPTION.go)];
const selected = (id: number, name: string): Buffer =>
  encodeOptionReply(OPTION.setMetaContext, OPTION_REPLY.metaContext, encodeMetaContextEntry({ id, name }));
const [ext, str, set] = [OPTION.extendedHeaders, OPTION.structuredReply, OPTION.setMetaContext];

t.test('wishes that a server does not grant leave a session with less', (t) => {
  const agreed = (answers: Readonly<Record<number, readonly Buffer[]>>): unknown => {
    const decision = negotiate({ [OPTION.go]: go, ...answers });
    return decision.kind === 'export' ? [decision.terms.replies, ...decision.terms.contexts] : decision;
  };
  const both = [selected(7, 'x-test:one'), selected(3, 'x-test:two'), ack(set)];
  const one: [number, string] = [7, 'x-test:one'];
  const two: [number, string] = [3, 'x-test:two'];
  t.same(agreed({}), ['simple'], 'nothing');
  t.same(agreed({ [set]: both }), ['simple'], 'contexts are not asked for without chunks');
  t.same(agreed({ [str]: [ack(str)] }), ['structured']);
  t.same(agreed({ [ext]: [ack(ext)], [set]: both }), ['extended', one, two]);
  t.same(agreed({ [str]: [ack(str)], [set]: both }), ['structured', one, two]);
  t.same(agreed({ [str]: [ack(str)], [set]: [ack(set)] }), ['structured'], 'no context is known');
  const failed = [selected(7, 'x-test:one'), refusal(set, OPTION_REPLY.errorTooBig)];
  t.same(
    agreed({ [str]: [ack(str)], [set]: failed }),
    ['structured'],
    'contexts before an error are nothing',
  );
  t.same(agreed({ [ext]: [refusal(ext, OPTION_REPLY.errorPolicy)] }), ['simple']);
  t.end();
});

t.test('what ends a negotiation', (t) => {
  const kinds: [string, Readonly<Record<number, readonly Buffer[]>>, string][] = [
    ['TLS is required', { [ext]: [refusal(ext, OPTION_REPLY.errorTlsRequired)] }, 'refused'],
    ['the server shuts down', { [str]: [refusal(str, OPTION_REPLY.errorShutdown)] }, 'refused'],
    [
      'no GO after extended headers',
      { [ext]: [ack(ext)], [OPTION.go]: [refusal(OPTION.go, OPTION_REPLY.errorUnsupported)] },
      'refused',
    ],
    [
      'one id twice',
      { [ext]: [ack(ext)], [set]: [selected(1, 'a:b'), selected(1, 'a:c'), ack(set)] },
      'violation',
    ],
    ['a context nobody asked for', { [ext]: [selected(1, 'a:b')] }, 'violation'],
    [
      'endless contexts',
      { [ext]: [ack(ext)], [set]: Array.from({ length: 65 }, (_, id) => selected(id, 'a:b')) },
      'violation',
    ],
  ];
  for (const [name, answers, kind] of kinds)
    t.equal(negotiate({ [OPTION.go]: go, ...answers }).kind, kind, name);
  t.end();
});
