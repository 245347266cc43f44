/**
 * A transmission without a socket, for the room's tests: a port that records, and requests by name.
 */

import { setImmediate as nextTurn } from 'node:timers/promises';
import type { AssertionError } from '../base/index.ts';
import { COMMAND, COMMAND_FLAG, emptyRequest, encodeRequest, type Request } from './codec.ts';
import { encodeExtendedRequest, type ReplyMode } from './codec-chunks.ts';
import { Fence } from './fence.ts';
import { type NbdLimits, nbdLimits } from './limits.ts';
import type { MetaContext } from './meta-context.ts';
import { TestDevice, type TestDeviceOptions } from './test-device.ts';
import { Transmission } from './transmission.ts';
import type { TransmissionPort, TransmissionTerms } from './transmission-port.ts';

/** Resolves when everything that was finished before has been answered: a turn's replies leave at its end. */
export async function settled(): Promise<void> {
  for (let turn = 0; turn < 3; turn += 1) await nextTurn();
}

/** A connection that keeps what is sent to it. */
export class RecordingPort implements TransmissionPort {
  output: Buffer = Buffer.alloc(0);
  sendCount = 0;
  unsent = 0;
  /** Whether the peer takes what is sent. */
  takes = true;
  broken = false;
  resumedCount = 0;
  finishedCount = 0;
  readonly hungUp: string[] = [];
  readonly logged: string[] = [];
  readonly programmerErrors: AssertionError[] = [];

  send(buffers: readonly Buffer[]): void {
    this.sendCount += 1;
    this.output = Buffer.concat([this.output, ...buffers]);
    if (!this.takes) for (const buffer of buffers) this.unsent += buffer.length;
  }

  unsentBytes(): number {
    return this.unsent;
  }

  isPeerGone(): boolean {
    return false;
  }

  isBroken(): boolean {
    return this.broken;
  }

  resumeInput(): void {
    this.resumedCount += 1;
  }

  finished(): void {
    this.finishedCount += 1;
  }

  hangUp(reason: string): void {
    this.hungUp.push(reason);
  }

  log(_level: string, message: string): void {
    this.logged.push(message);
  }

  programmerError(error: AssertionError): void {
    this.programmerErrors.push(error);
  }
}

export interface Setting {
  readonly device: TestDevice;
  readonly port: RecordingPort;
  readonly transmission: Transmission;
  readonly fence: Fence;
}

export interface SettingOptions {
  readonly device?: TestDeviceOptions;
  readonly readOnly?: boolean;
  readonly limits?: Partial<NbdLimits>;
  readonly terms?: TransmissionTerms;
}

export function setUp(options: SettingOptions = {}): Setting {
  const { device: deviceOptions, readOnly = false, limits, terms } = options;
  const device = new TestDevice(deviceOptions);
  return { device, ...attach(device, new Fence(), readOnly, limits, terms) };
}

export function attach(
  device: TestDevice,
  fence: Fence,
  readOnly = false,
  limits: Partial<NbdLimits> = {},
  terms?: TransmissionTerms,
): Omit<Setting, 'device'> {
  const fastZeroes = device.capabilities.trim;
  const port = new RecordingPort();
  const transmission = new Transmission(
    { device, readOnly, fastZeroes, fence },
    nbdLimits(limits),
    port,
    terms,
  );
  return { port, transmission, fence };
}

export function request(type: number, cookieLow: number, more: Partial<Request> = {}): Buffer {
  return encodeRequest({ ...emptyRequest(), type, cookieLow, ...more });
}

/** A request of extended headers, with its payload behind it where it has one. */
export function extended(
  type: number,
  cookieLow: number,
  more: Partial<Request> = {},
  payload?: Buffer,
): Buffer {
  const lengthBytes = payload === undefined ? (more.lengthBytes ?? 0) : payload.length;
  const flags = (more.flags ?? 0) | (payload === undefined ? 0 : COMMAND_FLAG.payloadLength);
  const header = encodeExtendedRequest({ ...emptyRequest(), ...more, type, cookieLow, lengthBytes, flags });
  return payload === undefined ? header : Buffer.concat([header, payload]);
}

/** A context that says everywhere the same, in one extent. */
export function contextOf(name: string, flags: number): MetaContext {
  return { name, extents: (_, lengthBytes) => Promise.resolve([{ lengthBytes, flags }]) };
}

/** Terms with contexts under the ids 1, 2 and so on. */
export function termsOf(replies: ReplyMode, ...contexts: readonly MetaContext[]): TransmissionTerms {
  return { replies, contexts: contexts.map((context, index) => ({ id: index + 1, context })) };
}

export function read(cookie: number, offsetBytes: number, lengthBytes = 512): Buffer {
  return request(COMMAND.read, cookie, { offsetBytes, lengthBytes });
}

export function write(cookie: number, offsetBytes: number, data: Buffer = block(cookie), flags = 0): Buffer {
  const header = request(COMMAND.write, cookie, { offsetBytes, lengthBytes: data.length, flags });
  return Buffer.concat([header, data]);
}

export function flush(cookie: number): Buffer {
  return request(COMMAND.flush, cookie);
}

export function block(value: number): Buffer {
  return Buffer.alloc(512, value);
}

/** The replies without data in an output: cookie and error. */
export function statuses(output: Buffer): [cookie: number, error: number][] {
  const replies: [number, number][] = [];
  for (let at = 0; at < output.length; at += 16) {
    replies.push([output.readUInt32BE(at + 12), output.readUInt32BE(at + 4)]);
  }
  return replies;
}

/** Zeroes: a change without payload that finishes at once. */
export function zeroes(cookie: number): Buffer {
  return request(COMMAND.writeZeroes, cookie, { offsetBytes: 1024, lengthBytes: 512 });
}
