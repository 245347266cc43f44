/**
 * Goal: no bytes of a peer crash, hang or mislead server or client, make them lose connections, requests or
 * memory, or reach beyond the export; and the fuzzer that shows it would notice.
 *
 * Method: recorded sessions of real clients and servers, played as they are, then mutated, a fixed list of
 * seeds here. `scripts/fuzz` runs for as long as asked, `scripts/test` gives it a minute. The judge of the
 * server's answers is shown wrong ones.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { SeededRandom } from '../base/index.ts';
import { COMMAND } from './codec.ts';
import { Fuzzer } from './test-fuzz.ts';
import { ownClientOf, PlayingServer } from './test-fuzz-client.ts';
import { cutIntoChunks, mutate } from './test-mutations.ts';
import { assertAnswered, readRequests } from './test-replies.ts';
import {
  bytesFrom,
  decodeSegments,
  encodeSegments,
  readSessions,
  SESSION_BYTES_MAX,
} from './test-sessions.ts';
import { read, setUp, settled, write } from './test-transmission.ts';

const SEED_COUNT = 400;

t.test('segments: neighbours are joined, long sessions are cut, the rest comes back', async (t) => {
  const segments = [
    { from: 'server', bytes: Buffer.from('a') },
    { from: 'server', bytes: Buffer.from('b') },
    { from: 'client', bytes: Buffer.alloc(100_000, 1) },
    { from: 'server', bytes: Buffer.from('c') },
  ] as const;
  const file = encodeSegments(segments);
  t.equal(file.length, SESSION_BYTES_MAX);
  const back = decodeSegments(file);
  t.same(
    back.map(({ from, bytes }) => [from, bytes.length]),
    [
      ['server', 2],
      ['client', SESSION_BYTES_MAX - 12],
    ],
  );
  t.throws(() => decodeSegments(file.subarray(1)), /begins with byte/);
  t.throws(() => decodeSegments(file.subarray(0, 20)), /ends at byte/);
});

t.test('mutations come from the seed alone, and leave some streams as they are', async (t) => {
  const [stream, other] = [Buffer.alloc(1000, 'abc'), Buffer.alloc(500, 'xyz')];
  const results = Array.from({ length: 200 }, (_, seed) => mutate(new SeededRandom(seed), stream, other));
  const again = Array.from({ length: 200 }, (_, seed) => mutate(new SeededRandom(seed), stream, other));
  t.ok(results.every((bytes, seed) => again[seed]?.equals(bytes) === true));
  const kept = results.filter((bytes) => bytes.equals(stream)).length;
  t.ok(kept > 2 && kept < 100, `${kept} of 200 are as they were`);
  t.ok(stream.equals(Buffer.alloc(1000, 'abc')), 'the original is not touched');
  for (let seed = 0; seed < 50; seed += 1) {
    const chunks = cutIntoChunks(new SeededRandom(seed), stream);
    t.ok(Buffer.concat(chunks).equals(stream), `the chunks of seed ${seed} are the stream`);
  }
});

t.test('servers that were recorded are understood as they are', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'nbd-'));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  const server = await PlayingServer.open(directory);
  const own = readSessions().filter((session) => ownClientOf(session) !== undefined);
  t.ok(own.length >= 9);
  for (const session of own) {
    const succeeded = await server.play(new SeededRandom(1), session, bytesFrom(session, 'server'));
    // All but the three that ask for what is outside of the export.
    t.ok(succeeded >= 10, `${session.name}: ${succeeded} requests succeeded`);
  }
  await server.close();
});

t.test('the judge of answers accepts right ones and no other', async (t) => {
  const { device, port, transmission } = setUp();
  device.bytes.fill('right');
  const stream = Buffer.concat([read(1, 512), write(2, 0), read(3, 2 ** 20)]);
  transmission.receive(Buffer.from(stream));
  await settled();
  const { output } = port;
  const asked = readRequests(stream, 'simple');
  t.same(
    asked.map(({ type, offsetBytes, payload }) => [type, offsetBytes, payload.length]),
    [
      [COMMAND.read, 512, 0],
      [COMMAND.write, 0, 512],
      [COMMAND.read, 2 ** 20, 0],
    ],
  );
  const given = [{ offsetBytes: 512, bytes: Buffer.from(device.bytes.subarray(512, 1024)) }];
  const judge = (answer: Buffer, isComplete = true): void =>
    assertAnswered(asked, answer, { mode: 'simple', given, isComplete });
  judge(output);
  judge(output.subarray(0, 100), false);
  const changed = (at: number): Buffer => {
    const copy = Buffer.from(output);
    copy.writeUInt8(copy.readUInt8(at) ^ 1, at);
    return copy;
  };
  t.throws(() => judge(output.subarray(0, 528 + 16)), /No answer came to command 0 on 1048576/);
  t.throws(() => judge(output.subarray(0, 100)), /ends within a reply/);
  t.throws(() => judge(changed(0)), /No reply begins/);
  t.throws(() => judge(changed(15)), /cookie 0:0, which no open request has/);
  t.throws(() => judge(changed(16)), /bytes at 512 that the device did not give/);
  t.throws(() => judge(Buffer.concat([output, output])), /which no open request has/);
});

t.test(`seeds 1 to ${SEED_COUNT}`, async (t) => {
  const fuzzer = await Fuzzer.open();
  const targets = new Set<string>();
  for (let seed = 1; seed <= SEED_COUNT; seed += 1) {
    try {
      targets.add(await fuzzer.run(seed));
    } catch (error) {
      t.fail(`scripts/fuzz --seed ${seed} --runs 1: ${String(error)}`);
    }
  }
  t.equal(targets.size, 4, 'server and client, with and without sockets');
  await fuzzer.close();
});
