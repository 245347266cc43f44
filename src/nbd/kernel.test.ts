/**
 * Goal: a device is attached with what the export offers; it gets new sockets whenever it loses some, from the
 * right server only; watching ends when the device is detached or the signal comes, and leaves nothing open.
 *
 * Method: a driver and a server made of plain objects, whose news are scripted and whose pauses are counted,
 * not waited for; the bytes of CONNECT are compared with those worked out from linux/nbd-netlink.h. The true
 * driver is met by native-tests/vm-restart.test.ts.
 */

import t, { type Test } from 'tap';
import { encodeAttributes, NativeError } from '../base/index.ts';
import type { NbdExportInfo } from './client-handshake.ts';
import { NbdClientError } from './client-error.ts';
import { connectAttributes, type KernelDriver, type KernelNews, type KernelSetup } from './kernel-driver.ts';
import { attachKernelDevice, detachKernelDevice, type KernelDeviceOptions } from './kernel.ts';
import { type KernelDeviceEvent, KernelSupervisor } from './kernel-supervisor.ts';
import type { KernelSocket } from './kernel-socket.ts';

const URI = 'nbd://127.0.0.1/vol';
const DEVICE = '/dev/nbd7';

const INFO: NbdExportInfo = {
  name: 'vol',
  description: '',
  sizeBytes: 1_048_576,
  transmissionFlags: 0x16d,
  readOnly: false,
  canFlush: true,
  canFua: true,
  canTrim: true,
  canWriteZeroes: true,
  canMultiConn: true,
  minimumBlockSizeBytes: 512,
  preferredBlockSizeBytes: 4096,
  maximumPayloadBytes: 33_554_432,
};

/** A kernel with one device, and a server. */
class World {
  info = INFO;
  isServerUp = true;
  /** What the next waits bring; then the signal fires. */
  news: ((world: World) => Partial<KernelNews>)[] = [];
  setup: KernelSetup | undefined;
  backend: string | undefined;
  sizeBytes: number | undefined;
  isAttached = false;
  /** Sockets that the kernel holds; undefined where it has room for one. */
  slots: (number | undefined)[] = [];
  readonly open = new Set<number>();
  readonly events: KernelDeviceEvent[] = [];
  readonly pauses: number[] = [];
  /** Called at each pause. */
  onPause: () => void = () => {};
  isDriverOpen = false;
  failure: Error | undefined;
  readonly ending = new AbortController();
  #nextDescriptor = 10;

  readonly openSocket = async (): Promise<KernelSocket> => {
    if (!this.isServerUp) throw new NbdClientError('connect-failed', 'nobody there', { address: URI });
    const descriptor = this.#nextDescriptor;
    this.#nextDescriptor += 1;
    this.open.add(descriptor);
    return { descriptor, exportInfo: this.info, close: () => this.open.delete(descriptor) };
  };

  readonly driver: KernelDriver = {
    isAttached: async () => this.isAttached,
    backendOf: () => this.backend,
    sizeBytesOf: () => this.sizeBytes,
    connect: async (setup) => {
      if (this.failure !== undefined) throw this.failure;
      this.setup = setup;
      this.backend = setup.backend;
      this.slots = [...setup.descriptors];
      this.isAttached = true;
    },
    reconfigure: async (_index, backend, descriptors) => {
      if (!this.isAttached || backend !== this.backend) return false;
      for (const descriptor of descriptors) {
        const free = this.slots.indexOf(undefined);
        if (free >= 0) this.slots[free] = descriptor;
      }
      return true;
    },
    disconnect: async () => {
      this.isAttached = false;
    },
    isTaken: (descriptor) => this.slots.includes(descriptor),
    wait: async (_index, descriptors, timeoutMs) => {
      if (timeoutMs === 0) return { dead: [], isLinkDead: false };
      const next = this.news.shift();
      if (next === undefined) this.ending.abort();
      const { dead = [], isLinkDead = false } = next?.(this) ?? {};
      return { dead: dead.filter((descriptor) => descriptors.includes(descriptor)), isLinkDead };
    },
    close: () => {
      this.isDriverOpen = false;
    },
  };

  readonly openDriver = async (): Promise<KernelDriver> => {
    if (this.failure !== undefined && this.setup !== undefined) throw this.failure;
    this.isDriverOpen = true;
    return this.driver;
  };

  /** The server is gone with all its sockets. */
  lose(): KernelNews {
    const dead = this.slots.flatMap((slot) => slot ?? []);
    this.slots = this.slots.map(() => undefined);
    return { dead, isLinkDead: true };
  }

  attach(options: Partial<KernelDeviceOptions> = {}) {
    return attachKernelDevice({ device: DEVICE, address: URI, ...options }, this);
  }

  /** A supervisor of the attached device whose pauses take no time. */
  supervisor(isTakenOver = false, connections = this.slots.length): KernelSupervisor {
    const sockets = isTakenOver ? [] : this.slots.flatMap((descriptor) => descriptor ?? []);
    return new KernelSupervisor({
      device: DEVICE,
      index: 7,
      backend: this.backend ?? '',
      address: { transport: { kind: 'tcp', host: '127.0.0.1', port: 10_809 }, exportName: 'vol' },
      exportInfo: this.info,
      sockets: sockets.map((descriptor) => ({
        descriptor,
        exportInfo: INFO,
        close: () => this.open.delete(descriptor),
      })),
      connections,
      isTakenOver,
      driver: this.driver,
      openSocket: this.openSocket,
      onEvent: (event) => this.events.push(event),
      clock: { now: () => 0, monotonicMs: () => 0 },
      pause: async (milliseconds) => {
        this.pauses.push(milliseconds);
        this.onPause();
      },
    });
  }

  kinds(): string[] {
    return this.events.map(({ kind }) => kind);
  }
}

/** A device attached over `connections` sockets. */
async function attached(connections = 2): Promise<World> {
  const world = new World();
  await world.attach({ connections });
  return world;
}

t.test('the bytes of CONNECT', (t) => {
  const bytes = encodeAttributes(
    connectAttributes({
      index: 7,
      sizeBytes: 1_048_576,
      blockSizeBytes: 4096,
      transmissionFlags: 0x16d,
      timeoutSeconds: 30,
      deadConnectionSeconds: 3600,
      backend: 'b',
      descriptors: [9, 10],
    }),
  );
  const golden = [
    '0800010007000000',
    '0c0002000000100000000000',
    '0c0003000010000000000000',
    '0c0004001e00000000000000',
    '0c000800100e000000000000',
    '0c0005006d01000000000000',
    '06000a0062000000',
    '1c0007800c00018008000100090000000c000180080001000a000000',
  ];
  t.equal(bytes.toString('hex'), golden.join(''));
  t.end();
});

t.test('a device is made of what the export offers', async (t) => {
  const world = new World();
  const device = await world.attach({ connections: 2, timeoutSeconds: 5 });
  t.match(world.setup, {
    index: 7,
    sizeBytes: 1_048_576,
    blockSizeBytes: 4096,
    transmissionFlags: 0x16d,
    timeoutSeconds: 5,
    deadConnectionSeconds: 3600,
    backend: /^nbd:\/\/127\.0\.0\.1\/vol#[0-9a-f]{32}$/,
    descriptors: [10, 11],
  });
  t.equal(device.isTakenOver, false);
  t.equal(await device.supervise(AbortSignal.abort()), 'left');
  t.equal(world.open.size, 0, 'no descriptor stays open');
  t.equal(world.isDriverOpen, false);
  t.equal(world.isAttached, true, 'the device goes on');

  const odd = new World();
  odd.info = { ...INFO, sizeBytes: 1_048_576 + 1024 };
  await odd.attach();
  t.equal(odd.setup?.blockSizeBytes, 1024, 'the last block is whole');
});

t.test('what cannot be is refused with its reason, and nothing stays open', async (t) => {
  const refused = async (
    code: string,
    change: (world: World) => void,
    options: Partial<KernelDeviceOptions> = {},
  ): Promise<void> => {
    const world = new World();
    change(world);
    await t.rejects(world.attach(options), { code }, code);
    t.strictSame([world.open.size, world.isDriverOpen], [0, false]);
  };
  const none = (): void => {};
  await refused('device-invalid', none, { device: '/dev/sda' });
  await refused('uri-invalid', none, { address: 'nbd://' });
  await refused('connect-failed', (world) => (world.isServerUp = false));
  await refused('export-unusable', (world) => (world.info = { ...INFO, sizeBytes: 1000 }));
  await refused('export-unusable', (world) => (world.info = { ...INFO, minimumBlockSizeBytes: 8192 }));
  await refused('export-unusable', (world) => (world.info = { ...INFO, sizeBytes: 0 }));
  await refused('export-unusable', none, { blockSizeBytes: 1000 });
  await refused('export-unusable', (world) => (world.info = { ...INFO, canMultiConn: false }), {
    connections: 2,
  });
  const native = (errno: number) => (world: World) =>
    (world.failure = new NativeError('netlink', errno, 'connect'));
  await refused('not-permitted', native(1));
  await refused('device-attached', native(16));
  await refused('driver-refused', native(22));
  await refused('device-attached', (world) => {
    world.isAttached = true;
    world.backend = 'nbd://elsewhere/vol#1';
  });
  const missing = async (): Promise<KernelDriver> => {
    throw new NativeError('netlink', 2, 'family nbd');
  };
  const options = { device: DEVICE, address: URI };
  await t.rejects(attachKernelDevice(options, { openDriver: missing, openSocket: new World().openSocket }), {
    code: 'driver-missing',
    message: /modprobe nbd/,
  });
});

async function supervised(world: World, supervisor: KernelSupervisor): Promise<string> {
  const end = await supervisor.run(world.ending.signal);
  t.strictSame([world.open.size, world.isDriverOpen], [0, false], 'nothing stays open');
  return end;
}

t.test('a lost server is waited for, with longer and longer pauses', async (t: Test) => {
  const world = await attached();
  world.news = [
    () => ({}),
    (kernel) => {
      kernel.isServerUp = false;
      return kernel.lose();
    },
    () => ({}),
  ];
  world.onPause = () => (world.isServerUp = world.pauses.length === 7);
  t.equal(await supervised(world, world.supervisor()), 'left');
  t.strictSame(world.pauses, [100, 200, 400, 800, 1600, 2000, 2000]);
  t.strictSame(world.kinds(), ['lost', 'waiting', 'restored'], 'one reason is said once');
  t.strictSame(world.slots, [12, 13], 'the device has two new sockets');
});

t.test('one lost connection of several is replaced', async (t: Test) => {
  const world = await attached(3);
  world.news = [
    (kernel) => {
      kernel.slots[1] = undefined;
      return { dead: [11] };
    },
  ];
  await supervised(world, world.supervisor());
  t.strictSame(world.slots, [10, 13, 12]);
});

t.test('a socket that the device did not take yet is offered again', async (t: Test) => {
  const world = await attached(1);
  world.news = [() => ({ dead: [10] })];
  // The socket hangs up a moment before the driver counts it as dead.
  world.onPause = () => void world.lose();
  await supervised(world, world.supervisor());
  t.equal(world.pauses.length, 1);
  t.strictSame(world.slots, [12]);
});

t.test('another volume is not connected to', async (t: Test) => {
  const changes: Partial<NbdExportInfo>[] = [
    { sizeBytes: 2_097_152 },
    { sizeBytes: 2_097_152, description: 'another' },
    { name: 'other' },
    { readOnly: true },
    { canFlush: false },
    { minimumBlockSizeBytes: 4096 },
  ];
  for (const change of changes) {
    const world = await attached(1);
    world.news = [
      (kernel) => {
        kernel.info = { ...INFO, ...change };
        return kernel.lose();
      },
    ];
    world.onPause = () => {
      t.strictSame(world.slots, [undefined], JSON.stringify(change));
      world.info = INFO;
    };
    await supervised(world, world.supervisor());
    const waiting = world.events.find((event) => event.kind === 'waiting');
    t.match(waiting, { error: { code: 'export-changed' } });
    t.strictSame(world.slots, [12], 'the right server is, once it is back');
  }
});

t.test('a volume that grew is connected to, by what it says of itself', async (t: Test) => {
  const changes: [after: Partial<NbdExportInfo>, isRefused: boolean][] = [
    [{ sizeBytes: 2_097_152 }, false],
    [{ sizeBytes: 524_288 }, true],
    [{ sizeBytes: 2_097_152, description: 'volume 8' }, true],
  ];
  for (const [change, isRefused] of changes) {
    const world = new World();
    world.info = { ...INFO, description: 'volume 7' };
    await world.attach({ connections: 1 });
    world.news = [
      (kernel) => {
        kernel.info = { ...kernel.info, ...change };
        return kernel.lose();
      },
    ];
    world.onPause = () => (world.info = { ...INFO, description: 'volume 7' });
    await supervised(world, world.supervisor());
    const waiting = world.events.find((event) => event.kind === 'waiting');
    t.equal(waiting !== undefined, isRefused, JSON.stringify(change));
    t.strictSame(world.slots, [isRefused ? 12 : 11]);
  }
});

t.test('watching ends with the device', async (t: Test) => {
  const gone = await attached();
  gone.news = [
    (kernel) => {
      kernel.isAttached = false;
      return kernel.lose();
    },
  ];
  t.equal(await supervised(gone, gone.supervisor()), 'detached');

  const someoneElse = await attached();
  const supervisor = someoneElse.supervisor();
  someoneElse.news = [
    (kernel) => {
      const lost = kernel.lose();
      kernel.backend = 'another program';
      return lost;
    },
  ];
  t.equal(await supervised(someoneElse, supervisor), 'detached');
  t.strictSame(someoneElse.slots, [undefined, undefined], 'its device is left alone');
});

t.test('the signal ends a wait for a server', async (t: Test) => {
  const world = await attached();
  world.news = [
    (kernel) => {
      kernel.isServerUp = false;
      return kernel.lose();
    },
  ];
  world.onPause = () => world.ending.abort();
  t.equal(await supervised(world, world.supervisor()), 'left');
  t.equal(world.isAttached, true);
});

t.test('a device whose watcher ended is taken over', async (t: Test) => {
  const world = await attached(2);
  world.sizeBytes = INFO.sizeBytes;
  world.open.clear();
  const device = await world.attach({ connections: 2 });
  t.equal(device.isTakenOver, true);
  t.strictSame(world.slots, [10, 11], 'its sockets go on');
  world.news = [(kernel) => ({ ...kernel.lose(), dead: [] })];
  t.equal(await supervised(world, world.supervisor(true, 2)), 'left');
  t.notOk(world.slots.includes(undefined), 'announced losses are made good');
  t.notOk(world.slots.includes(10));

  world.sizeBytes = 4096;
  await t.rejects(world.attach(), { code: 'export-changed' });
});

t.test('detaching', async (t) => {
  const world = await attached();
  await detachKernelDevice(DEVICE, { force: true }, world);
  t.equal(world.isAttached, false);
  await t.rejects(detachKernelDevice(DEVICE, {}, world), { code: 'device-detached' });
  await t.rejects(detachKernelDevice('nbd0', {}, world), { code: 'device-invalid' });
});
